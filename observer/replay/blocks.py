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


def resampled(flag: NDArray[np.bool_], block: NDArray[np.int64], blocks: int) -> NDArray[np.float64]:
    """The share of flags in each of RESAMPLES draws of whole blocks, NaN where a draw has none.

    The draws are the same ones each time, so that a difference of two shares is one of pairs.
    """
    count, total = np.bincount(block, minlength=blocks), np.bincount(block, flag, minlength=blocks)
    chosen = _draws(blocks)
    with np.errstate(invalid="ignore"):
        return np.asarray(total[chosen].sum(1) / count[chosen].sum(1))


def interval(flag: NDArray[np.bool_], block: NDArray[np.int64], blocks: int) -> NDArray[np.float64]:
    """The 90% interval of the share of flags, [2]; there must be one flag at least."""
    return np.asarray(np.nanpercentile(resampled(flag, block, blocks), LEVEL))


@cache
def _draws(blocks: int) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, blocks, (RESAMPLES, blocks))
