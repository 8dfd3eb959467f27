"""What a score is about: 32 consecutive tokens of one sequence, in all layers. How they are scored is in the others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from observer.stats.base import Array, Index, ratio


class Window(NamedTuple):
    """The picks of a window's tokens, without padding; layers are the rows that were captured, in ascending order."""

    layers: Index  # [layers] row of the [layer, expert] arrays
    ids: Index  # [tokens, layers, k]
    weights: Array  # [tokens, layers, k] routing weight w
    sum_unit_norm: Array  # [tokens, layers] |sum over k of c / |c||; NaN where it is not known
    nll: Array  # [tokens] of the next token in nats; NaN where it is not known


class Raw(NamedTuple):
    """A dimension's figure for a window before calibration, and each expert's own on the same scale."""

    value: float  # NaN where it is not known
    own: Array  # [layers, expert] the mean over what is the expert's; 0 where it has nothing
    mass: Array  # [layers, expert] how much that rests on: its picks, or its pairs


def own_means(window: Window, per_token: Array, experts: int) -> tuple[Array, Array]:
    """Mean of a figure [tokens, layers] over each expert's tokens, and their number; both [layers, expert].

    >>> ids = np.array([[[0, 1]], [[0, 2]]])
    >>> one = np.ones((2, 1, 2))
    >>> w = Window(np.arange(1), ids, one, one[..., 0], np.ones(2))
    >>> [x.tolist() for x in own_means(w, np.array([[1.0], [3.0]]), experts=3)]
    [[[2.0, 1.0, 3.0]], [[2.0, 1.0, 1.0]]]
    """
    _, layers, k = window.ids.shape
    known = np.isfinite(per_token)
    cell = (np.arange(layers)[:, None] * experts + window.ids)[known].ravel()
    values = np.repeat(per_token[known], k)
    count = np.bincount(cell, minlength=layers * experts).astype(np.float64)
    total = np.bincount(cell, values, minlength=layers * experts).astype(np.float64)
    return ratio(total, count).reshape(layers, experts), count.reshape(layers, experts)


def mean_of_known(values: Array) -> float:
    """Mean of the finite values, NaN if there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")
