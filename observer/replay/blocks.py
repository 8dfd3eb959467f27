"""Intervals of shares that change along a trace: its passes in blocks, and these drawn again and again."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = (5, 95)  # percentiles


def block_of(number: NDArray[np.integer], count: int, blocks: int) -> NDArray[np.int64]:
    """The block of each pass, given its number of so many: as many passes in each as can be.

    >>> block_of(np.arange(6), 6, 3).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    return np.asarray(number.astype(np.int64) * blocks // max(count, 1))


def resampled(marked: NDArray[np.integer], count: NDArray[np.integer]) -> NDArray[np.float64]:
    """The share of marked ones in each of RESAMPLES draws of whole blocks, NaN where a draw has none at all.

    Both are [blocks]. The draws are the same ones each time, so that a difference of two shares is one of pairs.
    """
    chosen = _draws(len(count))
    with np.errstate(invalid="ignore"):
        return np.asarray(marked[chosen].sum(1) / count[chosen].sum(1))


def interval(marked: NDArray[np.integer], count: NDArray[np.integer]) -> NDArray[np.float64]:
    """The 90% interval of the share of marked ones, [2]; there must be one to count at least."""
    return np.asarray(np.nanpercentile(resampled(marked, count), LEVEL))


@cache
def _draws(blocks: int) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, blocks, (RESAMPLES, blocks))
