"""Conflict: the experts of a token pull against each other."""

from __future__ import annotations

import numpy as np

from observer.salience.windows import Raw, Window, mean_of_known, own_means
from observer.stats.base import ratio


def conflict(window: Window, experts: int) -> Raw:
    """Mean over tokens and layers of 1 - |sum c|^2 / (k sum |c|^2), 0 (all alike) .. 1 (they cancel).

    c is a pick's weighted output. Contributions at right angles give 1 - 1/k however unequal they are, so that the
    figure is about directions; version 1, 1 - |sum c| / sum |c|, rose as soon as weights were even, which is arousal.
    NaN where contributions were not captured.

    >>> ids, one = np.array([[[0, 1]]]), np.ones((1, 1))
    >>> def of(a, b):
    ...     a, b = np.array(a), np.array(b)
    ...     square, total = (a @ a + b @ b) * one, np.linalg.norm(a + b) * one
    ...     return round(conflict(Window(np.arange(1), ids, one[..., None], square, total, one[0]), 2).value, 9)
    >>> of([1, 0], [1, 0]), of([1, 0], [0, 1]), of([9, 0], [0, 1]), of([1, 0], [-1, 0])
    (0.0, 0.5, 0.5, 1.0)
    """
    known = np.isfinite(window.c_square) & (window.c_square > 0)
    most = window.ids.shape[2] * np.where(known, window.c_square, 0.0)
    apart = np.where(known, np.maximum(1.0 - ratio(window.sum_c_norm**2, most), 0.0), np.nan)
    return Raw(mean_of_known(apart), *own_means(window, apart, experts))
