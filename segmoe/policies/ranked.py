"""A policy for a live cache: numbers the experts as they appear and keeps their order. Rules and order live beside."""

from __future__ import annotations

import math
import statistics
from collections.abc import Container, Mapping
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmoe.events import ExpertKey
from segmoe.policies.base import Victim
from segmoe.policies.ranking import NOBODY, Table, enter, fullest, leave, look, use
from segmoe.policies.rules import Rule, score, weight


class Ranked:
    """Any rule of rules.py as a Policy. Experts that the trust snapshot does not know count as its median."""

    def __init__(self, rule: Rule, trust: Mapping[ExpertKey, float] | None = None) -> None:
        self.rule = rule
        self._trust = dict(trust or {})
        self._unknown = statistics.median(self._trust.values()) if self._trust else 0.5
        self._keys: list[ExpertKey] = []
        self._numbers: dict[ExpertKey, int] = {}
        self._groups: dict[tuple[str, int], int] = {}
        self._table = Table(
            rank=[],
            turn=[],
            step=[],
            weight=[],
            place=[],
            group=[],
            heap=[],
            seen_rank=[],
            seen_turn=[],
            size=[],
            counts=[0, rule.seed],
            floor=[0.0],
        )
        self._step = 0
        self._tokens = 0
        self._used: list[ExpertKey] = []  # since they were ranked last
        self.touch = self._used.append  # all that a use costs while its layer waits

    def begin(self, step: int, tokens: int) -> None:
        """A pass of so many tokens starts; one of which nothing is known counts as one token."""
        self._rank_used()
        self._step = step
        self._tokens += max(tokens, 1)

    def _rank_used(self) -> None:
        """Rank those that were used, in order, before anything depends on it: many at once cost less than one by one.

        What multiplies the layers in between leaves nothing of this code and its tables in the processor's caches.
        """
        if not self._used:
            return
        for key in self._used:
            number = self._numbers.get(key)
            if number is None:
                number = self._admit(key)
            use(self._table, self.rule, number, self._step, self._tokens)
        self._used.clear()

    def forget(self, key: ExpertKey) -> None:
        """Take the expert out of the order."""
        self._rank_used()
        leave(self._table, self.rule, self._numbers[key])

    def victim(self, pinned: Container[ExpertKey], coming: ExpertKey | None = None) -> Victim | None:
        """The lowest that is not pinned, of the layer that holds most if layers are kept level."""
        self._rank_used()
        table = self._table
        if not self.rule.per_layer:
            return self._lowest(0, pinned) if table.size else None
        own = NOBODY if coming is None else self._groups.get((coming.component, coming.layer), NOBODY)
        tried = [False] * len(table.size)
        while (group := fullest(table, own, tried)) != NOBODY:
            found = self._lowest(group, pinned)
            if found is not None:
                return found
            tried[group] = True
        return None

    def state(self) -> dict[str, NDArray[Any]]:
        """What is known of each expert, and the clocks. The heap is not in it: ranks and turns alone decide."""
        self._rank_used()
        table = self._table
        return {
            "component": np.array([key.component for key in self._keys], dtype=np.str_),
            "place": np.array([(key.layer, key.expert) for key in self._keys], dtype=np.int64).reshape(-1, 2),
            "rank": np.array(table.rank),
            "turn": np.array(table.turn, dtype=np.int64),
            "step": np.array(table.step, dtype=np.int64),
            "resident": np.array(table.place, dtype=np.int64) != NOBODY,
            "clocks": np.array([self._step, self._tokens, *table.counts]),
            "floor": np.array(table.floor),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take the experts up again under the same numbers."""
        table = self._table
        for component, (layer, expert) in zip(state["component"].tolist(), state["place"].tolist(), strict=True):
            self._admit(ExpertKey(component, layer, expert))
        table.rank[:], table.turn[:], table.step[:] = (state[name].tolist() for name in ("rank", "turn", "step"))
        for number in np.flatnonzero(state["resident"]).tolist():
            enter(table, number)
        self._step, self._tokens, *table.counts[:] = state["clocks"].tolist()
        table.floor[:] = state["floor"].tolist()

    def _lowest(self, group: int, pinned: Container[ExpertKey]) -> Victim | None:
        """The lowest that is not pinned and the one after it, searched from the top of the heap.

        The layer under way may have pinned many of the lowest; taking them out and back costs ten times as much.
        """
        table = self._table
        heap, ranks, turns, size = table.heap[group], table.seen_rank[group], table.seen_turn[group], table.size[group]
        frontier = [(ranks[0], turns[0], 0)] if size else []  # each place from which nobody was taken yet
        free: list[int] = []
        while frontier:
            place = heappop(frontier)[2]
            if look(table, group, place):
                heappush(frontier, (ranks[place], turns[place], place))  # somebody else stands there now
                continue
            number = heap[place]
            if self._keys[number] not in pinned:
                free.append(number)
                if len(free) == 2:
                    break
            for child in range(2 * place + 1, min(2 * place + 3, size)):
                heappush(frontier, (ranks[child], turns[child], child))
        if not free:
            return None
        key = self._keys[free[0]]
        return Victim(
            key,
            score(self.rule, table.rank[free[0]], self._step, self._tokens, table.floor[0]),
            self._keys[free[1]] if len(free) > 1 else None,
            self._trust.get(key, self._unknown) if self.rule.uses_trust else None,
        )

    def _admit(self, key: ExpertKey) -> int:
        number = self._numbers[key] = len(self._keys)
        self._keys.append(key)
        place = (key.component, key.layer) if self.rule.per_layer else ("", 0)
        group = self._groups.setdefault(place, len(self._groups))
        table = self._table
        if group == len(table.size):
            table.size.append(0)
            for rows in (table.heap, table.seen_rank, table.seen_turn):
                rows.append([])
        for rows in (table.heap, table.seen_rank, table.seen_turn):
            rows[group].append(NOBODY)
        trust = weight(self.rule, self._trust.get(key, self._unknown))
        for column, value in (
            (table.rank, -math.inf),
            (table.turn, 0),
            (table.step, NOBODY),
            (table.weight, trust),
            (table.place, NOBODY),
            (table.group, group),
        ):
            column.append(value)
        return number
