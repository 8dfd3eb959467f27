"""Replay a trace through the rules that a live cache runs. Belady, who knows the future, is in belady.py."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from observer.replay.compiled import compiled
from observer.replay.lru import lru
from observer.replay.trace import Trace
from segmoe.events import ExpertKey
from segmoe.policies.ranking import COMPILABLE, NOBODY, Table, enter, fullest, leave, lowest, remove, use
from segmoe.policies.rules import LRU, Rule, score, weight

UNBOUNDED = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a cache would have done: each access that missed was a load."""

    hit: NDArray[np.bool_]  # [accesses]
    evicted_at: NDArray[np.int64]  # [evictions] index of the access whose load made room
    evicted: NDArray[np.int32]  # [evictions] number of the expert that left
    score: NDArray[np.float64]  # [evictions] what it was ranked by

    @property
    def misses(self) -> int:
        """Accesses that had to read."""
        return int(len(self.hit) - self.hit.sum())

    @property
    def miss_ratio(self) -> float:
        """Misses per access."""
        return self.misses / max(len(self.hit), 1)


def simulate(
    trace: Trace,
    rule: Rule,
    *,
    experts: int | None = None,
    nbytes: int | None = None,
    trust: Mapping[ExpertKey, float] | None = None,
    plain: bool = False,
) -> Outcome:
    """What an empty cache of so many experts, or bytes, would have done under a rule.

    As in the live cache, a layer's pass keeps whom it still needs; a `plain` one looks at one access at a time.
    """
    accesses = len(trace)
    hit = np.zeros(accesses, np.bool_)
    evicted_at, evicted, scores = np.zeros(accesses, np.int64), np.zeros(accesses, np.int32), np.zeros(accesses)
    most = (UNBOUNDED if experts is None else experts, UNBOUNDED if nbytes is None else nbytes)
    if rule.kind == LRU and not rule.per_layer:
        ends = None if plain else layer_ends(trace)
        evictions = lru(trace, ends, *most, hit, evicted_at, evicted, scores)
    else:
        table = make_table(trace, rule, trust)
        evictions = _run(
            table,
            rule,
            trace.expert,
            trace.pass_index,
            np.arange(1, accesses + 1) if plain else layer_ends(trace),
            trace.clock(),
            trace.nbytes,
            *most,
            hit,
            evicted_at,
            evicted,
            scores,
            np.full(len(trace.keys), -1, np.int64),  # index of the expert's access in the layer's pass under way
            np.zeros(len(trace.keys), np.int64),
            np.zeros(len(table.size), np.bool_),
        )
    return Outcome(hit=hit, evicted_at=evicted_at[:evictions], evicted=evicted[:evictions], score=scores[:evictions])


def make_table(trace: Trace, rule: Rule, trust: Mapping[ExpertKey, float] | None) -> Table:
    """The empty state of a ranking, in arrays."""
    count = len(trace.keys)
    group = np.zeros(count, np.int32)
    if rule.per_layer:
        groups: dict[tuple[str, int], int] = {}
        for number, key in enumerate(trace.keys):
            group[number] = groups.setdefault((key.component, key.layer), len(groups))
    known = trust or {}
    unknown = statistics.median(known.values()) if known else 0.5
    sizes = np.bincount(group, minlength=1)
    heap = (len(sizes), int(sizes.max()))
    return Table(
        rank=np.full(count, -math.inf),
        turn=np.zeros(count, np.int64),
        step=np.full(count, NOBODY, np.int64),
        weight=np.array([weight(rule, known.get(key, unknown)) for key in trace.keys]),
        place=np.full(count, NOBODY, np.int32),
        group=group,
        heap=np.full(heap, NOBODY, np.int32),
        seen_rank=np.zeros(heap),
        seen_turn=np.zeros(heap, np.int64),
        size=np.zeros(len(sizes), np.int64),
        counts=np.array([0, rule.seed], np.int64),
        floor=np.zeros(1),
    )


def layer_ends(trace: Trace) -> NDArray[np.int64]:
    """For each access the end of its layer's accesses in its pass, [accesses]: these are asked for together."""
    places: dict[tuple[str, int], int] = {}
    number = [places.setdefault((key.component, key.layer), len(places)) for key in trace.keys]
    place = np.array(number, np.int32)[trace.expert]
    last = np.ones(len(trace), np.bool_)
    last[:-1] = (place[1:] != place[:-1]) | (trace.pass_index[1:] != trace.pass_index[:-1])
    ends = np.flatnonzero(last) + 1
    return np.repeat(ends, np.diff(ends, prepend=0))


@compiled(calls=(*COMPILABLE, score))
def _victim(table: Table, rule: Rule, coming: int, needed: Any, at: int, tried: Any, aside: Any) -> int:
    """The lowest that is not needed by the rest of this layer's pass, or NOBODY."""
    found = NOBODY
    tried[:] = False
    while found == NOBODY:
        group = fullest(table, table.group[coming], tried) if rule.per_layer else 0
        if group == NOBODY or tried[group]:
            break
        tried[group] = True
        count = 0
        while True:
            first = lowest(table, group)
            if first == NOBODY:
                break
            if needed[first] <= at:
                found = first
                break
            remove(table, first)
            aside[count] = first
            count += 1
        for index in range(count):
            enter(table, aside[index])
    return found


@compiled()
def _run(
    table: Table,
    rule: Rule,
    expert: Any,
    pass_index: Any,
    layer_end: Any,
    clock: Any,
    nbytes: Any,
    capacity_experts: int,
    capacity_bytes: int,
    hit: Any,
    evicted_at: Any,
    evicted: Any,
    scores: Any,
    needed: Any,
    aside: Any,
    tried: Any,
) -> int:
    """Decide access by access as the cache does: in a layer's pass, who is to come stays if anybody else can go."""
    held = used = evictions = end = 0
    for at in range(len(expert)):
        if at == end:
            end = layer_end[at]
            for later in range(at, end):
                needed[expert[later]] = later
        wanted, step = expert[at], pass_index[at]
        now = clock[step]
        if table.place[wanted] != NOBODY:
            hit[at] = True
        else:
            while held > 0 and (held >= capacity_experts or used + nbytes[wanted] > capacity_bytes):
                victim = _victim(table, rule, wanted, needed, at, tried, aside)
                if victim != NOBODY:
                    scores[evictions] = score(rule, table.rank[victim], step, now, table.floor[0])
                else:
                    scores[evictions] = 0.0
                    for later in range(at + 1, end):  # the one that is needed last
                        if table.place[expert[later]] != NOBODY:
                            victim = expert[later]
                evicted_at[evictions] = at
                evicted[evictions] = victim
                evictions += 1
                leave(table, rule, victim)
                held -= 1
                used -= nbytes[victim]
            held += 1
            used += nbytes[wanted]
        use(table, rule, wanted, step, now)
    return evictions
