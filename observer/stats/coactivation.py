"""Which experts of a layer are picked together for a token. Picks in the layer after are transitions.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from observer.stats.base import Array, Estimator, Index, Picks, ratio


class CoactivationFigures(NamedTuple):
    """Both [layer, expert, expert], symmetric, 0 on the diagonal."""

    pairs: Array  # C, tokens for which both were picked
    lift: Array  # C / what chance gives; 1 is chance; 0 where chance gives none


@dataclass(slots=True)
class Coactivation(Estimator):
    """Tokens C_ij that picked both i and j of a layer, and uses n_i.

    lift_ij = C_ij / (f n_i n_j), with f such that the expected counts of a layer sum to the observed ones:
    f = sum over i < j of C_ij / sum over i < j of n_i n_j. Without f, chance itself would stay below 1, since k picks
    of one token are k different experts. Co-activation as in Muennighoff et al., "OLMoE" (2024); lift: Brin et al.,
    "Dynamic itemset counting" (1997).

    >>> c, one = Coactivation.zeros(layers=1, experts=3), np.ones((4, 2))
    >>> ids = np.array([[0, 1], [1, 0], [0, 1], [2, 0]])
    >>> c.update(Picks(layer=0, ids=ids, weights=one, c_norm=one, impact=one, window=np.arange(4)))
    >>> c.get().pairs[0].tolist()
    [[0.0, 3.0, 1.0], [3.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
    >>> c.get().lift[0].round(3).tolist()  # n = 4, 3, 1; f = 4 / (12 + 4 + 3)
    [[0.0, 1.188, 1.188], [1.188, 0.0, 0.0], [1.188, 0.0, 0.0]]
    """

    PER_PAIR: ClassVar[frozenset[str]] = frozenset({"pairs"})

    pairs: Array
    uses: Array

    def update(self, picks: Picks, /) -> None:
        """Count the pairs of each token."""
        experts = self.uses.shape[1]
        self.uses[picks.layer] += picks.sums(None, experts)
        self.pairs[picks.layer] += pair_counts(picks.ids, picks.ids, experts) * (1 - np.eye(experts))

    def get(self) -> CoactivationFigures:
        """Tell counts and lift."""
        chance = self.uses[:, :, None] * self.uses[:, None, :] * (1 - np.eye(self.uses.shape[1]))
        whole = ratio(self.pairs.sum(axis=(1, 2), keepdims=True), chance.sum(axis=(1, 2), keepdims=True))
        return CoactivationFigures(self.pairs.copy(), ratio(self.pairs, whole * chance))


def pair_counts(first: Index, second: Index, experts: int) -> Array:
    """Tokens [expert, expert] that have row expert among `first` [tokens, k] and column expert among `second`.

    >>> pair_counts(np.array([[0, 1]]), np.array([[1]]), experts=2).tolist()
    [[0.0, 1.0], [0.0, 1.0]]
    """
    cell = first[:, :, None] * experts + second[:, None, :]
    counts = np.bincount(cell.ravel(), minlength=experts * experts)
    return counts.astype(np.float64).reshape(experts, experts)
