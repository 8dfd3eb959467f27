"""Novelty: experts are picked together that seldom were, over all that was ever seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from observer.salience.windows import Raw, Window
from observer.stats.base import Array, Index, ratio


@dataclass(slots=True)
class Novelty:
    """Mean over the window's co-selected pairs of (1 + C)^-1/2, 0..1, C the pair's count in all windows before.

    1 / sqrt(1 + count) is the exploration bonus of count-based reinforcement learning (Bellemare et al. 2016). It never
    forgets, so what merely comes back is not new. An expert's own figure is the mean over the pairs that it is in.

    >>> n = Novelty.zeros(1, 3)
    >>> def window(i, j):
    ...     ids, one = np.array([[[i, j]]]), np.ones((1, 1))
    ...     return Window(np.arange(1), ids, np.ones((1, 1, 2)), one, one[0])
    >>> for _ in range(3): n.learn(window(0, 1))
    >>> n.raw(window(1, 0)).value, n.raw(window(0, 2)).value
    (0.5, 1.0)
    """

    pairs: Array  # [layer, expert, expert] C, above the diagonal

    @classmethod
    def zeros(cls, layers: int, experts: int) -> Novelty:
        """Return one that has seen nothing."""
        return cls(np.zeros((layers, experts, experts)))

    def raw(self, window: Window) -> Raw:
        """Look the window's pairs up; NaN where a token has one expert only."""
        layers, experts = window.ids.shape[1], self.pairs.shape[1]
        low, high = _pairs(window.ids)
        if low.size == 0:
            none = np.zeros((layers, experts))
            return Raw(float("nan"), none, none)
        values = 1.0 / np.sqrt(1.0 + self.pairs[window.layers[:, None], low, high])
        place = np.arange(layers)[:, None] * experts
        cell = np.concatenate(((place + low).ravel(), (place + high).ravel()))
        count = np.bincount(cell, minlength=layers * experts).astype(np.float64)
        total = np.bincount(cell, np.tile(values.ravel(), 2), minlength=layers * experts).astype(np.float64)
        shape = (layers, experts)
        return Raw(float(values.mean()), ratio(total, count).reshape(shape), count.reshape(shape))

    def learn(self, window: Window) -> None:
        """Count the window's pairs."""
        low, high = _pairs(window.ids)
        np.add.at(self.pairs, (np.broadcast_to(window.layers[:, None], low.shape), low, high), 1.0)


def _pairs(ids: Index) -> tuple[Index, Index]:
    """All pairs of each token's experts, [tokens, layers, pairs], the lower number first."""
    first, second = np.triu_indices(ids.shape[2], 1)
    return np.minimum(ids[..., first], ids[..., second]), np.maximum(ids[..., first], ids[..., second])
