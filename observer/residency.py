"""Which experts came and went: one row an event, up to a cap. Counting hits and misses is totals.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from observer.gaps import Gaps
from observer.rows import NextUse, ResidencyRow
from observer.state import Arrays
from segmoe.events import ExpertEvicted, ExpertKey, ExpertLoaded, ExpertWasted

EVENTS_CAP = 100_000
"""Rows of one run; about 8 MB. A long run has billions of events, and replay has them all from a trace."""

OVER_CAP = "residency events over the cap"


class ResidencyLog:
    """Takes loads, evictions and wasted reads in their order; when an expert comes back, its eviction learns when.

    `rows` and `next_uses` hold what was not yet taken away by the owner.
    """

    def __init__(self, expert_bytes: Mapping[ExpertKey, int], gaps: Gaps, cap: int = EVENTS_CAP) -> None:
        self.rows: list[ResidencyRow] = []
        self.next_uses: list[NextUse] = []
        self._expert_bytes, self._gaps, self._cap = expert_bytes, gaps, cap
        self._events = 0
        self._gone: dict[ExpertKey, int] = {}  # event_index of the eviction that its expert has not come back from

    def take(self, event: ExpertLoaded | ExpertWasted | ExpertEvicted) -> None:
        """Log the event, if it fits."""
        key, index = event.key, self._events
        if isinstance(event, ExpertLoaded) and key in self._gone:
            self.next_uses.append(NextUse(self._gone.pop(key), event.step))
        if index >= self._cap:
            if self._cap:
                self._gaps.add(OVER_CAP, event.step)
            return
        self._events += 1
        if isinstance(event, ExpertLoaded):
            row = ResidencyRow(
                *(index, event.step, "load", *key, event.cause, event.bytes),
                read_ns=event.read_ns,
                waited_ns=event.waited_ns,
            )
        elif isinstance(event, ExpertWasted):
            row = ResidencyRow(*(index, event.step, "waste", *key, "prefetch", event.bytes), read_ns=event.read_ns)
        else:
            self._gone[key] = index
            row = ResidencyRow(
                *(index, event.step, "evict", *key, event.reason, self._expert_bytes.get(key, 0)),
                idle_steps=event.idle_steps,
                policy_score=event.policy_score if math.isfinite(event.policy_score) else 0.0,
                trust=-1.0 if event.trust is None else event.trust,
            )
        self.rows.append(row)

    def state(self) -> Arrays:
        """Return what later rows depend on."""
        keys = list(self._gone)
        return {
            "events": np.array(self._events),
            "components": np.array([key.component for key in keys], dtype=np.str_),
            "gone": np.array([(k.layer, k.expert, self._gone[k]) for k in keys], dtype=np.int64).reshape(len(keys), 3),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state."""
        self._events = int(state["events"])
        pairs = zip(state["components"].tolist(), state["gone"].tolist(), strict=True)
        self._gone = {ExpertKey(component, layer, expert): index for component, (layer, expert, index) in pairs}
        self.rows, self.next_uses = [], []
