"""Impact per use in short windows of one text, the evidence for stability. What follows from it is trust.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from observer.stats.base import Array, Estimator, Picks, ratio
from observer.stats.moments import Moments

WINDOW_TOKENS = 32
"""Consecutive tokens of one sequence; a shorter rest at its end is a window too."""

WINDOW_USES = 4
"""A window says something about an expert that was used at least so often in it."""


class WindowFigures(NamedTuple):
    """All [layer, expert]."""

    windows: Array  # with enough uses of the expert
    cv: Array  # coefficient of variation of its per-use impact over them; 0 where there are none


@dataclass(slots=True)
class Windows(Estimator):
    """Moments of p_w = (sum of the expert's impact in window w) / (its uses in w) over windows with >= 4 uses.

    CV = sqrt(mean (p_w - mean p)^2) / mean p, of the windows seen (no sample correction).

    >>> impact = np.repeat([[1.0], [3.0]], 32, axis=0)
    >>> ids, window = np.zeros((64, 1), dtype=np.intp), np.repeat([0, 1], 32)
    >>> w = Windows.zeros(layers=1, experts=2)
    >>> w.update(Picks(layer=0, ids=ids, weights=impact, c_norm=impact, impact=impact, window=window))
    >>> w.get().windows.tolist(), w.get().cv.tolist()  # p = 1, 3: mean 2, deviation 1
    ([[2.0, 0.0]], [[0.5, 0.0]])
    """

    windows: Array
    mean: Array
    m2: Array

    def update(self, picks: Picks, /) -> None:
        """Add the windows of one layer; a window must lie within one call."""
        if len(picks.ids) == 0:
            return
        experts, groups, layer = self.mean.shape[1], int(picks.window[-1]) + 1, picks.layer
        uses = picks.grouped(picks.window, groups, None, experts)
        per_use = ratio(picks.grouped(picks.window, groups, picks.impact, experts), uses)
        before = Moments(self.windows[layer], self.mean[layer], self.m2[layer])
        self.windows[layer], self.mean[layer], self.m2[layer] = before.plus(Moments.of(per_use, uses >= WINDOW_USES))

    def merge(self, other: Windows, /) -> None:
        """Add the other's windows."""
        both = Moments(self.windows, self.mean, self.m2).plus(Moments(other.windows, other.mean, other.m2))
        self.windows, self.mean, self.m2 = both

    def get(self) -> WindowFigures:
        """Tell the number of windows and the coefficient of variation."""
        return WindowFigures(self.windows.copy(), ratio(np.sqrt(ratio(self.m2, self.windows)), self.mean))
