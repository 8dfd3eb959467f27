"""How much each expert adds to the residual stream: EAN, REAP, impact. What that is worth is trust.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from observer.stats.base import Array, Estimator, Picks, ratio


class MagnitudeFigures(NamedTuple):
    """All [layer, expert]."""

    ean: Array
    reap: Array
    impact_mean: Array
    impact_sum: Array


@dataclass(slots=True)
class Magnitude(Estimator):
    """Sums over the picks of an expert, with o its output, w its weight, c = w o.

    - EAN = sum |o|, |o| = |c| / w (0 where w is 0): expert activation norm, Jaiswal et al., "Finding Fantastic
      Experts in MoEs" (2025).
    - REAP = mean of w |o| = mean |c| over the tokens routed to it: Lasby et al., "REAP the Experts" (2025).
    - impact_mean = I = sum of (1 - cos(h, h - c)) / tokens observed: the part of the state's direction that is the
      expert's doing, per token of the layer, not per use.

    >>> one = np.array([[1.0], [1.0], [1.0], [1.0]])
    >>> m = Magnitude.zeros(layers=1, experts=2)
    >>> ids = np.array([[0], [0], [0], [1]])
    >>> m.update(Picks(layer=0, ids=ids, weights=one / 2, c_norm=3 * one, impact=one / 4, window=np.arange(4)))
    >>> figures = m.get()
    >>> figures.ean.tolist(), figures.reap.tolist(), figures.impact_mean.tolist()
    ([[18.0, 6.0]], [[3.0, 3.0]], [[0.1875, 0.0625]])
    """

    PER_LAYER: ClassVar[frozenset[str]] = frozenset({"tokens"})

    tokens: Array
    uses: Array
    o_norm: Array
    c_norm: Array
    impact: Array

    def update(self, picks: Picks, /) -> None:
        """Add the picks of one layer."""
        experts, layer = self.uses.shape[1], picks.layer
        self.tokens[layer] += len(picks.ids)
        self.uses[layer] += picks.sums(None, experts)
        self.o_norm[layer] += picks.sums(ratio(picks.c_norm, np.abs(picks.weights)), experts)
        self.c_norm[layer] += picks.sums(picks.c_norm, experts)
        self.impact[layer] += picks.sums(picks.impact, experts)

    def get(self) -> MagnitudeFigures:
        """Tell EAN, REAP, mean impact per token and its sum."""
        return MagnitudeFigures(
            ean=self.o_norm.copy(),
            reap=ratio(self.c_norm, self.uses),
            impact_mean=ratio(self.impact, self.tokens),
            impact_sum=self.impact.copy(),
        )
