"""How often an expert is picked in one text and the next. What tells contexts apart is specialization.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from observer.stats.base import Array, Estimator, Picks
from observer.stats.moments import Moments


class TextFigures(NamedTuple):
    """What the texts say; a text counts once however long it is."""

    texts: Array  # [layer, 1]
    mean: Array  # [layer, expert] of the load in a text; sums to 1 over the layer
    variance: Array  # [layer, expert] of that mean: how far other texts of the context would move it


@dataclass(slots=True)
class Texts(Estimator):
    """Moments over texts of r = uses of the expert in the text / picks of the layer in it.

    variance = sum (r - mean r)^2 / (n (n - 1)), the squared standard error of the mean. Tokens of one text are alike,
    so a text is one observation; with fewer than two the variance is 0 and says nothing.

    >>> texts, one = Texts.zeros(layers=1, experts=2), np.ones((4, 1))
    >>> ids, text = np.array([[0], [0], [0], [1]]), np.array([0, 0, 1, 1])  # loads 1, 0 and 1/2, 1/2
    >>> texts.update(Picks(layer=0, ids=ids, weights=one, c_norm=one, impact=one, window=text, text=text))
    >>> texts.get().mean.tolist(), texts.get().variance.tolist()
    ([[0.75, 0.25]], [[0.0625, 0.0625]])
    """

    PER_LAYER: ClassVar[frozenset[str]] = frozenset({"texts"})

    texts: Array
    mean: Array
    m2: Array

    def update(self, picks: Picks, /) -> None:
        """Add the texts of one layer; a text must lie within one call."""
        if len(picks.ids) == 0:
            return
        text = np.zeros(len(picks.ids), dtype=np.intp) if picks.text is None else picks.text
        count, layer = int(text[-1]) + 1, picks.layer
        uses = picks.grouped(text, count, None, self.mean.shape[1])
        loads = uses / uses.sum(axis=1, keepdims=True)
        before = Moments(self.texts[layer], self.mean[layer], self.m2[layer])
        _, self.mean[layer], self.m2[layer] = before.plus(Moments.of(loads, np.ones(loads.shape, dtype=np.bool_)))
        self.texts[layer] += count

    def merge(self, other: Texts, /) -> None:
        """Add the other's texts."""
        both = Moments(self.texts, self.mean, self.m2).plus(Moments(other.texts, other.mean, other.m2))
        self.texts, self.mean, self.m2 = both

    def get(self) -> TextFigures:
        """Tell texts, mean load and its squared standard error."""
        pairs = np.maximum(self.texts * (self.texts - 1), 1)
        return TextFigures(self.texts.copy(), self.mean.copy(), self.m2 / pairs)
