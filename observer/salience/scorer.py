"""Scores window after window of one component in five dimensions. What each measures is in the file of its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from observer.salience.arousal import arousal
from observer.salience.calibration import EVER, LATELY, Calibration
from observer.salience.conflict import conflict
from observer.salience.novelty import Novelty
from observer.salience.reward import mean_nll
from observer.salience.surprise import Surprise
from observer.salience.windows import Raw, Window
from observer.stats.base import Array, ratio

DEFINITION_VERSION = 5
"""Stands in every row; a change of a formula or of a constant is a new version.

The second has another conflict than the first, the third another conflict and another surprise, the fourth holds
novelty against all that was seen, the fifth holds the others against five times as many windows as before.
"""

DIMENSIONS = ("surprise", "novelty", "arousal", "reward", "conflict")
REWARD = DIMENSIONS.index("reward")
RATES = (LATELY, EVER, LATELY, LATELY, LATELY)
"""Novelty never forgets, and neither does what it is held against: lately it differs so little within a text that any
other text, read before or not, was new."""


class Salience(NamedTuple):
    """The scores of one window, 0..1."""

    scores: Array  # [5] in the order of DIMENSIONS
    salience: float  # their mean
    raw: Array  # [5] before calibration; NaN where not known


@dataclass(slots=True)
class Own:
    """Each expert's own figures over the windows of a score window: sums that the mean is taken of."""

    total: Array  # [5, layer, expert]
    mass: Array  # [5, layer, expert]

    @classmethod
    def zeros(cls, layers: int, experts: int) -> Own:
        """Return one that has seen nothing."""
        return cls(np.zeros((5, layers, experts)), np.zeros((5, layers, experts)))


class Scorer:
    """Scores a window against the windows before it, then lets it become one of them.

    cal(x) = sigma((x - mu) / s - 1): 0.27 for what is usual, 0.5 for one deviation more. Usual is what was lately, and
    for novelty what ever was. Surprise, novelty, arousal and conflict are cal of their figure, reward is
    sigma(-(NLL - mu) / s); what is not known counts as usual, in reward as 0.5. Salience is the mean of the five.

    The running means forget, so the order of windows matters, and of two states merged neither was the first:
    `merge` weighs them by their windows. Pair counts add up exactly.
    """

    def __init__(self, layers: int, experts: int) -> None:
        self.surprise = Surprise.zeros(layers, experts)
        self.novelty = Novelty.zeros(layers, experts)
        self.calibration = Calibration.zeros(RATES)
        self.own = Own.zeros(layers, experts)

    def score(self, window: Window) -> Salience:
        """Score the window and learn from it."""
        experts = self.own.total.shape[2]
        figures: list[Raw] = [
            self.surprise.raw(window),
            self.novelty.raw(window),
            arousal(window, experts),
            mean_nll(window, experts),
            conflict(window, experts),
        ]
        raw = np.array([figure.value for figure in figures])
        scores = self._calibrated(raw)
        for dimension, figure in enumerate(figures):
            self.own.total[dimension, window.layers] += figure.own * figure.mass
            self.own.mass[dimension, window.layers] += figure.mass
        self.surprise.learn(window)
        self.novelty.learn(window)
        self.calibration.learn(raw)
        return Salience(scores, float(scores.mean()), raw)

    def take_own(self) -> Array:
        """Score each expert's own means since the last call, [5, layer, expert]; 0 where it had nothing to score."""
        own, (_, layers, experts) = self.own, self.own.total.shape
        self.own = Own.zeros(layers, experts)
        return np.where(own.mass > 0, self._calibrated(ratio(own.total, own.mass)), 0.0)

    def merge(self, other: Scorer) -> None:
        """Add what another scorer of the same component has seen."""
        self.novelty.pairs += other.novelty.pairs
        self.own.total += other.own.total
        self.own.mass += other.own.mass
        for mine, others in ((self.surprise, other.surprise), (self.calibration, other.calibration)):
            seen = mine.seen + others.seen
            share = ratio(others.seen, seen)
            for name in ("routing",) if isinstance(mine, Surprise) else ("mean", "variance"):
                getattr(mine, name)[...] += share * (getattr(others, name) - getattr(mine, name))
            mine.seen[...] = seen

    def to_state(self) -> dict[str, Array]:
        """Return a copy of the state."""
        return {f"{part}.{name}": getattr(getattr(self, part), name).copy() for part, name in _STATE}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Go on from a copy of a state."""
        for part, name in _STATE:
            setattr(getattr(self, part), name, state[f"{part}.{name}"].copy())

    def _calibrated(self, values: Array) -> Array:
        """Map figures [5, ...] to 0..1."""
        z = self.calibration.deviations(values) - 1.0
        z[REWARD] = -(z[REWARD] + 1.0)
        return 0.5 * (1.0 + np.tanh(0.5 * z))


_STATE = (
    ("surprise", "seen"),
    ("surprise", "routing"),
    ("novelty", "pairs"),
    ("calibration", "seen"),
    ("calibration", "mean"),
    ("calibration", "variance"),
    ("own", "total"),
    ("own", "mass"),
)
