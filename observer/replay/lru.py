"""LRU alone, several times as fast as through the order that all policies share; simulate.py decides when.

The trace itself is the queue of uses: where an expert's last use is, there it stands, and its earlier places are stale.
Whoever is to go is found by a pointer that only moves on, so that an access costs one write of 4 bytes to a table by
expert, and an eviction a few reads of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from observer.replay.compiled import compiled
from observer.replay.trace import Trace

GONE = -1


def lru(trace: Trace, layer_end: NDArray[np.int64] | None, experts: int, nbytes: int, *outcome: NDArray[Any]) -> int:
    """Fill the arrays of an outcome, [accesses] each, and return how many evictions there were.

    Who is needed by the rest of a layer's pass stays if anybody else can go; `layer_end` tells for each access where
    that pass ends, and without it each access is one of its own.
    """
    small = np.int32 if len(trace) < np.iinfo(np.int32).max else np.int64
    last = np.full(len(trace.keys), GONE, small)
    if layer_end is None:
        return int(_one_by_one(trace.expert, trace.pass_index, trace.nbytes, experts, nbytes, last, *outcome))
    needed = np.full(len(trace.keys), GONE, small)  # index of the expert's access in the layer's pass under way
    return int(
        _by_layers(trace.expert, trace.pass_index, layer_end, trace.nbytes, experts, nbytes, last, needed, *outcome)
    )


@compiled()
def _one_by_one(
    expert: Any,
    pass_index: Any,
    nbytes: Any,
    capacity_experts: int,
    capacity_bytes: int,
    last: Any,
    hit: Any,
    evicted_at: Any,
    evicted: Any,
    scores: Any,
) -> int:
    held = used = evictions = head = 0
    for at in range(len(expert)):
        wanted = expert[at]
        if last[wanted] != GONE:
            hit[at] = True
        else:
            while held > 0 and (held >= capacity_experts or used + nbytes[wanted] > capacity_bytes):
                while last[expert[head]] != head:
                    head += 1
                victim = expert[head]
                evicted_at[evictions], evicted[evictions], scores[evictions] = at, victim, pass_index[head]
                evictions += 1
                last[victim] = GONE
                held -= 1
                used -= nbytes[victim]
            held += 1
            used += nbytes[wanted]
        last[wanted] = at
    return evictions


@compiled()
def _by_layers(
    expert: Any,
    pass_index: Any,
    layer_end: Any,
    nbytes: Any,
    capacity_experts: int,
    capacity_bytes: int,
    last: Any,
    needed: Any,
    hit: Any,
    evicted_at: Any,
    evicted: Any,
    scores: Any,
) -> int:
    """Whoever is passed over because the layer needs it still is used again before the layer ends: its place is stale
    by then, so that the pointer need not come back."""
    held = used = evictions = head = end = 0
    for at in range(len(expert)):
        if at == end:
            end = layer_end[at]
            for later in range(at, end):
                needed[expert[later]] = later
        wanted = expert[at]
        if last[wanted] != GONE:
            hit[at] = True
        else:
            while held > 0 and (held >= capacity_experts or used + nbytes[wanted] > capacity_bytes):
                while head < at and (last[expert[head]] != head or needed[expert[head]] > at):
                    head += 1
                victim, score = wanted, 0.0
                if head < at:
                    victim, score = expert[head], float(pass_index[head])
                else:
                    for later in range(at + 1, end):  # the one that is needed last
                        if last[expert[later]] != GONE:
                            victim = expert[later]
                evicted_at[evictions], evicted[evictions], scores[evictions] = at, victim, score
                evictions += 1
                last[victim] = GONE
                held -= 1
                used -= nbytes[victim]
            held += 1
            used += nbytes[wanted]
        last[wanted] = at
    return evictions
