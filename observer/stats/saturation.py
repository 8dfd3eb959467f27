"""When routing stopped changing: how much of an earlier state agrees with the last one. Nothing is counted here."""

from __future__ import annotations

import numpy as np

from observer.stats.base import Array, Index, ratio


def load_saturation(uses: Array) -> Array:
    """Agreement of the load so far with the load of the whole run, [window, layer] in 0..1.

    uses is [window, layer, expert], the picks in each score window; with p the load of windows 0..w together and q that
    of all, it is sum over e of min(p_e, q_e) = 1 - total variation distance. A run is long enough for its loads where
    this stays near 1; it says nothing of the model's training.

    >>> load_saturation(np.array([[[4.0, 0.0]], [[0.0, 4.0]], [[2.0, 2.0]]])).tolist()
    [[0.5], [1.0], [1.0]]
    """
    so_far = uses.cumsum(axis=0)
    load = ratio(so_far, so_far.sum(axis=2, keepdims=True))
    agreement: Array = np.minimum(load, load[-1:]).sum(axis=2)
    return agreement


def router_saturation(earlier: Index, later: Index) -> float:
    """Share of the picks of the later checkpoint that the earlier one made too, for the same tokens.

    Both are [tokens, k] of one layer, of two checkpoints of one model on the same text: mean over tokens of
    |earlier and later| / k (Muennighoff et al., "OLMoE", 2024, router saturation). Chance is k / experts.

    >>> router_saturation(np.array([[0, 1], [2, 3]]), np.array([[1, 0], [3, 4]]))
    0.75
    """
    return float((earlier[:, :, None] == later[:, None, :]).any(axis=1).mean()) if len(later) else 0.0
