"""Reward: the model foretells the text better than lately. The sign is turned where it is scored."""

from __future__ import annotations

import numpy as np

from observer.salience.windows import Raw, Window, mean_of_known, own_means


def mean_nll(window: Window, experts: int) -> Raw:
    """Mean next-token NLL of the window's tokens, nats; NaN where no next token is known.

    >>> one = np.ones((2, 1))
    >>> w = Window(np.arange(1), np.array([[[0]], [[1]]]), one[..., None], one, np.array([2.0, np.nan]))
    >>> found = mean_nll(w, 2)
    >>> found.value, found.own.tolist()
    (2.0, [[2.0, 0.0]])
    """
    per_layer = np.broadcast_to(window.nll[:, None], window.ids.shape[:2])
    return Raw(mean_of_known(window.nll), *own_means(window, per_layer, experts))
