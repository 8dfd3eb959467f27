"""Which experts the next layer picks after an expert was picked. Picks of one layer together are coactivation.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from observer.stats.base import Array, Estimator, Picks, ratio
from observer.stats.coactivation import pair_counts


class TransitionFigures(NamedTuple):
    """All [layer, expert of the layer row before, expert of this layer]; row 0 of layers has none before it."""

    pairs: Array  # T, tokens for which both were picked
    probability: Array  # P(this | before) = T / n_before
    lift: Array  # P(this | before) / P(this); 1 is chance; 0 where nothing was picked


@dataclass(slots=True)
class Transitions(Estimator):
    """Tokens T_ij that picked i in one layer and j in the next layer with experts, of N tokens seen in both.

    P(j | i) = T_ij / n_i and lift_ij = T_ij N / (n_i n_j), the expert-to-expert affinity that prefetching rests on
    (Yao et al., "Exploiting inter-layer expert affinity", 2024). Unlike within a layer, independent picks have lift 1.

    >>> t, one = Transitions.zeros(layers=2, experts=2), np.ones((4, 1))
    >>> before, now = np.array([[0], [0], [0], [1]]), np.array([[0], [0], [1], [1]])
    >>> t.update(Picks(layer=1, ids=now, weights=one, c_norm=one, impact=one, window=np.arange(4), before=before))
    >>> t.get().probability[1].round(3).tolist(), t.get().lift[1].round(3).tolist()
    ([[0.667, 0.333], [0.0, 1.0]], [[1.333, 0.667], [0.0, 2.0]])
    """

    PER_LAYER: ClassVar[frozenset[str]] = frozenset({"tokens"})
    PER_PAIR: ClassVar[frozenset[str]] = frozenset({"pairs"})

    tokens: Array
    before: Array
    uses: Array
    pairs: Array

    def update(self, picks: Picks, /) -> None:
        """Count what followed on what; nothing if the picks of the layer before are not known."""
        if picks.before is None:
            return
        experts, layer = self.uses.shape[1], picks.layer
        self.tokens[layer] += len(picks.ids)
        self.before[layer] += np.bincount(picks.before.ravel(), minlength=experts)
        self.uses[layer] += picks.sums(None, experts)
        self.pairs[layer] += pair_counts(picks.before, picks.ids, experts)

    def get(self) -> TransitionFigures:
        """Tell counts, probability and lift."""
        probability = ratio(self.pairs, self.before[:, :, None])
        return TransitionFigures(
            self.pairs.copy(), probability, ratio(probability, ratio(self.uses, self.tokens)[:, None, :])
        )
