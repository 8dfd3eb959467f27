"""How often each expert is picked and with which weight. How much it does then is magnitude.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from observer.stats.base import Array, Estimator, Picks, ratio

Counts: TypeAlias = NDArray[np.integer[Any] | np.floating[Any]]


class UsageFigures(NamedTuple):
    """All [layer, expert]."""

    uses: Array  # n, picks of the expert
    load: Array  # n / sum of n over the layer: sums to 1, the fair share is 1 / experts; 0 where nothing was picked
    weight_mean: Array  # mean routing weight of its picks; 0 where there are none


@dataclass(slots=True)
class Usage(Estimator):
    """Picks n and the sum of their routing weights w.

    load = n / sum n, the expert load of DeepSeek-V3's "expert load" figures and of sglang's expert distribution
    recorder; weight_mean = sum w / n.

    >>> usage, w = Usage.zeros(layers=1, experts=2), np.array([[0.75, 0.25], [1.0, 0.0]])
    >>> usage.update(Picks(layer=0, ids=np.array([[0, 1], [0, 1]]), weights=w, c_norm=w, impact=w, window=np.arange(2)))
    >>> usage.get().load.tolist(), usage.get().weight_mean.tolist()
    ([[0.5, 0.5]], [[0.875, 0.125]])
    """

    uses: Array
    weight: Array

    def update(self, picks: Picks, /) -> None:
        """Count the picks of one layer."""
        experts = self.uses.shape[1]
        self.uses[picks.layer] += picks.sums(None, experts)
        self.weight[picks.layer] += picks.sums(picks.weights, experts)

    def count(self, layer: int, uses: Counts, weight: Counts) -> None:
        """Add picks that were counted already, both [expert]."""
        self.uses[layer] += uses
        self.weight[layer] += weight

    def get(self) -> UsageFigures:
        """Tell n, load and mean weight."""
        layer_uses = np.sum(self.uses, axis=1, keepdims=True)
        return UsageFigures(self.uses.copy(), ratio(self.uses, layer_uses), ratio(self.weight, self.uses))
