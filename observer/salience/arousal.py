"""Arousal: the router is undecided."""

from __future__ import annotations

import numpy as np

from observer.salience.windows import Raw, Window, mean_of_known, own_means
from observer.stats.base import ratio


def arousal(window: Window, experts: int) -> Raw:
    """Mean over tokens and layers of the entropy of the picks' weights, as a share of ln k; 0..1.

    With p = w / sum over k of w: H = -sum p ln p / ln k. A segmented model tells the weights of the picks, not those of
    the other experts, so it is the indecision among the picks. NaN where a token has one expert only.

    >>> ids, one = np.array([[[0, 1]]]), np.ones((1, 1))
    >>> def window(*w): return Window(np.arange(1), ids, np.array([[w]]), one, one[0])
    >>> arousal(window(0.5, 0.5), 2).value, round(arousal(window(0.9, 0.1), 2).value, 3)
    (1.0, 0.469)
    """
    k = window.ids.shape[2]
    share = ratio(window.weights, window.weights.sum(axis=2, keepdims=True))
    log_share = np.log(share, out=np.zeros(share.shape), where=share > 0)
    entropy = -(share * log_share).sum(axis=2) / np.log(k) if k > 1 else np.full(share.shape[:2], np.nan)
    return Raw(mean_of_known(entropy), *own_means(window, entropy, experts))
