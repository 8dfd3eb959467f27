"""The ceiling: evict what is used again last (Belady's MIN). Nobody can run it live, since it knows the future.

L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5 (1966). Optimal
where all experts have one size and what is asked for must be loaded; with several sizes it is a heuristic.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from observer.replay.compiled import compiled
from observer.replay.simulate import UNBOUNDED, Outcome
from observer.replay.trace import Trace, in_order

NEVER = np.iinfo(np.int64).max


def next_uses(trace: Trace) -> NDArray[np.int64]:
    """For each access the index of its expert's next one, or NEVER."""
    found = np.full(len(trace), NEVER, np.int64)
    order = in_order(trace.expert, len(trace.keys))
    same = trace.expert[order[1:]] == trace.expert[order[:-1]]
    found[order[:-1][same]] = order[1:][same]
    return found


def belady(trace: Trace, *, experts: int | None = None, nbytes: int | None = None) -> Outcome:
    """What an empty cache of so many experts, or bytes, could have done at best. An eviction's score is -next use."""
    accesses = len(trace)
    hit = np.zeros(accesses, np.bool_)
    evicted_at, evicted, scores = np.zeros(accesses, np.int64), np.zeros(accesses, np.int32), np.zeros(accesses)
    evictions = _run(
        trace.expert,
        next_uses(trace),
        trace.nbytes,
        UNBOUNDED if experts is None else experts,
        UNBOUNDED if nbytes is None else nbytes,
        hit,
        evicted_at,
        evicted,
        scores,
    )
    return Outcome(hit=hit, evicted_at=evicted_at[:evictions], evicted=evicted[:evictions], score=scores[:evictions])


@compiled(allocates=True)
def _run(
    expert: Any,
    next_use: Any,
    nbytes: Any,
    capacity_experts: int,
    capacity_bytes: int,
    hit: Any,
    evicted_at: Any,
    evicted: Any,
    scores: Any,
) -> int:
    due = np.full(len(nbytes), -1, np.int64)  # next use of a resident expert, -1 if not in memory
    heap = [(np.int64(0), np.int64(0))]  # (-next use, expert); entries that `due` denies are stale
    heap.pop()
    held = used = evictions = 0
    for at in range(len(expert)):
        wanted = expert[at]
        if due[wanted] >= 0:
            hit[at] = True
        else:
            while held > 0 and (held >= capacity_experts or used + nbytes[wanted] > capacity_bytes):
                last, victim = heapq.heappop(heap)
                if due[victim] != -last:
                    continue
                evicted_at[evictions] = at
                evicted[evictions] = victim
                scores[evictions] = last
                evictions += 1
                due[victim] = -1
                held -= 1
                used -= nbytes[victim]
            held += 1
            used += nbytes[wanted]
        due[wanted] = next_use[at]
        heapq.heappush(heap, (-next_use[at], np.int64(wanted)))
    return evictions
