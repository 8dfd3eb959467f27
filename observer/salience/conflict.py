"""Conflict: the experts of a token pull against each other."""

from __future__ import annotations

import numpy as np

from observer.salience.windows import Raw, Window, mean_of_known, own_means
from observer.stats.base import ratio


def conflict(window: Window, experts: int) -> Raw:
    """Mean over tokens and layers of 1 - |sum c| / sum |c|, 0 (all pull one way) .. 1 (they cancel).

    c is a pick's weighted output. NaN where contributions were not captured.

    >>> ids, one = np.array([[[0, 1]]]), np.ones((1, 1))
    >>> conflict(Window(np.arange(1), ids, one[..., None], 4 * one, 3 * one, one[0]), 2).value
    0.25
    """
    known = np.isfinite(window.c_norm) & (window.c_norm > 0)
    cancelled = np.where(known, 1.0 - ratio(window.sum_c_norm, np.where(known, window.c_norm, 0.0)), np.nan)
    return Raw(mean_of_known(cancelled), *own_means(window, np.maximum(cancelled, 0.0), experts))
