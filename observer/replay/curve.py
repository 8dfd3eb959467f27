"""LRU's whole miss-ratio curve in one pass, from stack distances.

An access to an expert hits in an LRU cache of n experts exactly if fewer than n other experts were used since its last
use (R. L. Mattson et al., "Evaluation techniques for storage hierarchies", IBM Systems Journal 9, 1970). How many is
counted by a Fenwick tree over accesses of which only each expert's last is marked. The live cache hits a little more
often below one token cycle, because a layer's pass keeps whom it still needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from observer.replay.compiled import compiled
from observer.replay.trace import Trace


def stack_distances(trace: Trace) -> NDArray[np.int64]:
    """For each access the number of distinct experts used since the last use of its own; -1 at the first use."""
    distance = np.full(len(trace), -1, np.int64)
    last = np.full(len(trace.keys), -1, np.int64)
    _distances(trace.expert, last, np.zeros(len(trace) + 1, np.int32), distance)
    return distance


def lru_miss_ratios(trace: Trace) -> NDArray[np.float64]:
    """The miss ratio of LRU with n experts in memory at index n, from 0 to all, [experts + 1]."""
    distance = stack_distances(trace)
    hits = np.bincount(distance[distance >= 0] + 1, minlength=len(trace.keys) + 1)
    return np.asarray(1.0 - np.cumsum(hits) / max(len(trace), 1))


@compiled()
def _distances(expert: Any, last: Any, tree: Any, distance: Any) -> None:
    marked = 0
    for at in range(len(expert)):
        before = last[expert[at]]
        if before >= 0:
            upto, place = 0, before + 1
            while place > 0:  # marks at or before the last use
                upto += tree[place]
                place -= place & -place
            distance[at] = marked - upto
            place = before + 1
            while place < len(tree):
                tree[place] -= 1
                place += place & -place
        else:
            marked += 1
        last[expert[at]] = at
        place = at + 1
        while place < len(tree):
            tree[place] += 1
            place += place & -place
