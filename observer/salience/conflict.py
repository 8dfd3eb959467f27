"""Conflict: the experts of a token pull against each other."""

from __future__ import annotations

import numpy as np

from observer.salience.windows import Raw, Window, mean_of_known, own_means


def conflict(window: Window, experts: int) -> Raw:
    """Mean over tokens and layers of 1 - |sum c / |c||^2 / k^2, 0 (all alike) .. 1 (they cancel).

    c / |c| is the direction that a pick pulls in. With r the mean cosine over pairs of picks it is (1 - 1/k) (1 - r).
    It does not know the weights, neither those of the router nor the sizes of outputs: version 2,
    1 - |sum c|^2 / (k sum |c|^2), fell when weights became even, as soon as contributions were not at right angles.
    NaN where contributions were not captured.

    >>> ids, one = np.array([[[0, 1]]]), np.ones((1, 1))
    >>> def of(a, b):
    ...     total = np.linalg.norm(np.array(a) / np.linalg.norm(a) + np.array(b) / np.linalg.norm(b))
    ...     return round(conflict(Window(np.arange(1), ids, one[..., None], total * one, one[0]), 2).value, 9)
    >>> of([1, 0], [1, 0]), of([1, 0], [0, 1]), of([9, 0], [0, 1]), of([1, 0], [-1, 0])
    (0.0, 0.5, 0.5, 1.0)
    """
    apart = np.maximum(1.0 - (window.sum_unit_norm / window.ids.shape[2]) ** 2, 0.0)  # NaN stays NaN
    return Raw(mean_of_known(apart), *own_means(window, apart, experts))
