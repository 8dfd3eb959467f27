"""The ceiling: evict what is used again last (Belady's MIN). Nobody can run it live, since it knows the future.

L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5 (1966). Optimal
where all experts have one size and what is asked for must be loaded; with several sizes it is a heuristic.

A resident expert stands at the index of its next use, which no other has; one that is not used again stands behind all
of them. The last place taken is found in a bit set with a summary of each 32 bits above it, and so on up to one word.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from observer.replay.compiled import compiled
from observer.replay.simulate import UNBOUNDED, Outcome
from observer.replay.trace import Trace

NEVER = np.iinfo(np.int64).max
BITS = 5  # of an index within a word


def next_uses(trace: Trace) -> NDArray[np.int64]:
    """For each access the index of its expert's next one, or NEVER."""
    found = np.empty(len(trace), np.int64)
    _next_uses(trace.expert, np.full(len(trace.keys), NEVER), found)
    return found


def belady(trace: Trace, *, experts: int | None = None, nbytes: int | None = None) -> Outcome:
    """What an empty cache of so many experts, or bytes, could have done at best. An eviction's score is -next use."""
    accesses, places = len(trace), len(trace) + len(trace.keys)
    hit = np.zeros(accesses, np.bool_)
    evicted_at, evicted, scores = np.zeros(accesses, np.int64), np.zeros(accesses, np.int32), np.zeros(accesses)
    sizes = [(places - 1 >> BITS) + 1]  # words, of places, then of words
    while sizes[-1] > 1:
        sizes.append((sizes[-1] - 1 >> BITS) + 1)
    evictions = _run(
        trace.expert,
        next_uses(trace),
        trace.nbytes,
        UNBOUNDED if experts is None else experts,
        UNBOUNDED if nbytes is None else nbytes,
        np.zeros(len(trace.keys), np.bool_),
        np.zeros(sum(sizes), np.int64),
        np.cumsum([0, *sizes[:-1]]),
        hit,
        evicted_at,
        evicted,
        scores,
    )
    return Outcome(hit=hit, evicted_at=evicted_at[:evictions], evicted=evicted[:evictions], score=scores[:evictions])


@compiled()
def _next_uses(expert: Any, following: Any, found: Any) -> None:
    for at in range(len(expert) - 1, -1, -1):
        found[at] = following[expert[at]]
        following[expert[at]] = at


@compiled()
def _take(words: Any, level: Any, place: int) -> None:
    """Mark a place as taken, with the summaries above it as far as they do not tell yet."""
    for start in level:
        at = start + (place >> BITS)
        before = words[at]
        words[at] = before | (1 << (place & (1 << BITS) - 1))
        if before != 0:
            break
        place >>= BITS


@compiled()
def _free(words: Any, level: Any, place: int) -> None:
    """Mark a place as free, with the summaries above it as far as it was the last one."""
    for start in level:
        at = start + (place >> BITS)
        words[at] &= ~(1 << (place & (1 << BITS) - 1))
        if words[at] != 0:
            break
        place >>= BITS


@compiled()
def _last(words: Any, level: Any) -> int:
    """The last place taken; there must be one."""
    place = 0
    for number in range(len(level) - 1, -1, -1):
        word, bit = words[level[number] + place], 0
        for step in (16, 8, 4, 2, 1):
            if word >> step != 0:
                word >>= step
                bit += step
        place = (place << BITS) + bit
    return place


@compiled()
def _run(
    expert: Any,
    next_use: Any,
    nbytes: Any,
    capacity_experts: int,
    capacity_bytes: int,
    resident: Any,
    words: Any,
    level: Any,
    hit: Any,
    evicted_at: Any,
    evicted: Any,
    scores: Any,
) -> int:
    held = used = evictions = 0
    accesses, end = len(expert), len(expert) + len(nbytes) - 1
    for at in range(accesses):
        wanted = int(expert[at])  # of 32 bits, its last bit would be a sign
        if resident[wanted]:
            hit[at] = True
            _free(words, level, at)
        else:
            while held > 0 and (held >= capacity_experts or used + nbytes[wanted] > capacity_bytes):
                place = _last(words, level)
                victim = expert[place] if place < accesses else end - place
                evicted_at[evictions] = at
                evicted[evictions] = victim
                scores[evictions] = -place if place < accesses else -NEVER
                evictions += 1
                _free(words, level, place)
                resident[victim] = False
                held -= 1
                used -= nbytes[victim]
            resident[wanted] = True
            held += 1
            used += nbytes[wanted]
        _take(words, level, next_use[at] if next_use[at] < accesses else end - wanted)
    return evictions
