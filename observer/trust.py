"""Trust in each expert, from the evidence that stats/ keeps. No evidence lives here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from observer.stats.base import Array, ratio
from observer.stats.blocks import BlockFigures
from observer.stats.windows import WindowFigures

DEFINITION_VERSION = 2
"""Stands in every row; a change of a formula or of a default below is a new version.

`python -m tests.benchmarks.definitions` compares versions and what was tried beside them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustSettings:
    """The constants of the definition."""

    prior_blocks: float = 1.0  # kappa: the layer's mean counts as much as so many blocks
    is_model_wide: bool = True  # the median expert is that of all layers; of its own layer in version 1
    spread: float = 1.2  # factor on the log-normal deviation, so that 90% intervals hold 90%
    interval_z: float = 1.645 * 1.2  # two-sided 90%, wider by how much documents differ more than their blocks show
    prior_windows: float = 2.0  # pseudo-windows of stability ...
    prior_stability: float = 0.5  # ... at this value
    prior_uses: float = 8.0  # pseudo-uses of efficiency, at the layer's impact per use
    convergence_weight: float = 1.0
    stability_weight: float = 0.0
    efficiency_weight: float = 0.0


class Trust(NamedTuple):
    """All [layer, expert], in 0..1, never NaN."""

    trust: Array
    trust_low: Array
    trust_high: Array
    convergence: Array
    stability: Array
    efficiency: Array


class Convergence(NamedTuple):
    """All [layer, expert], in 0..1: the value and its 90% interval."""

    value: Array
    low: Array
    high: Array


DEFAULTS = TrustSettings()


def logistic(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), without overflow.

    >>> logistic(np.array([0.0, -1e9])).tolist()
    [0.5, 0.0]
    """
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def convergence(evidence: BlockFigures, settings: TrustSettings = DEFAULTS) -> Convergence:
    """How much of where the model's state ends up is the expert's doing, against the model's median expert.

    Over the J blocks, s_j = pull (impact^1.5) per token: prior I0 = the layer's mean of s, weight kappa;
    I^ = (sum s + kappa I0) / (J + kappa); V = (sum (s - I^)^2 + kappa I0^2) / (J + kappa)^2;
    sd = 1.2 sqrt(ln(1 + V / I^^2)); z = ln I^ - sd^2 / 2; x = the median of I^ over all layers that have evidence;
    value sigma(z - ln x), interval sigma(z +- 1.974 sd - ln x), 1.974 = 1.645 x 1.2.

    A layer without evidence (no block, or no pull in any) is told by the prior alone, as if its mean were the model's
    median. There V / I^^2 = 1:

    >>> nothing = BlockFigures(blocks=np.zeros((1, 1)), mean=np.zeros((1, 4)), m2=np.zeros((1, 4)))
    >>> [round(float(x[0, 0]), 3) for x in convergence(nothing)]  # sd = 1.2 sqrt(ln 2) = 0.999, sigma(-0.499)
    [0.378, 0.078, 0.814]
    """
    prior = evidence.mean.mean(axis=1, keepdims=True)
    known = prior > 0
    kappa = settings.prior_blocks
    blocks = np.where(known, evidence.blocks, 0.0)
    prior = np.where(known, prior, 1.0)
    mean = np.where(known, evidence.mean, 0.0)
    estimate = (blocks * mean + kappa * prior) / (blocks + kappa)
    deviations = np.where(known, evidence.m2, 0.0) + blocks * (mean - estimate) ** 2
    variance = (deviations + kappa * prior**2) / (blocks + kappa) ** 2
    sd = settings.spread * np.sqrt(np.log1p(variance / estimate**2))
    median = np.median(estimate, axis=1, keepdims=True)
    if settings.is_model_wide and known.any():
        median = np.where(known, np.median(estimate[known[:, 0]]), median)
    z = np.log(estimate) - sd**2 / 2 - np.log(median)
    reach = settings.interval_z * sd
    return Convergence(logistic(z), logistic(z - reach), logistic(z + reach))


def stability(evidence: WindowFigures, settings: TrustSettings = DEFAULTS) -> Array:
    """How alike an expert's impact per use is from window to window: 1 / (1 + CV), shrunk towards 0.5.

    >>> float(stability(WindowFigures(windows=np.array([2.0]), cv=np.array([0.0])))[0])  # (2 x 1 + 2 x 0.5) / 4
    0.75
    """
    shrunk = evidence.windows / (1.0 + evidence.cv) + settings.prior_windows * settings.prior_stability
    return shrunk / (evidence.windows + settings.prior_windows)


def efficiency(impact_sum: Array, uses: Array, expert_bytes: Array, settings: TrustSettings = DEFAULTS) -> Array:
    """Benefit per use and byte against the layer's median: u / (u + median u).

    u = (sum of impact + 8 u0) / (n + 8) x mean bytes / bytes, u0 = the layer's impact per use; 0.5 where all is 0.

    >>> float(efficiency(np.array([[3.0, 1.0, 1.0]]), np.array([[2.0, 2.0, 2.0]]), np.ones((1, 3)))[0, 1])
    0.5
    """
    per_use = ratio(impact_sum.sum(axis=1, keepdims=True), uses.sum(axis=1, keepdims=True))
    shrunk = (impact_sum + settings.prior_uses * per_use) / (uses + settings.prior_uses)
    u = shrunk * expert_bytes.mean(axis=1, keepdims=True) / expert_bytes
    total = u + np.median(u, axis=1, keepdims=True)
    return np.where(total > 0, ratio(u, total), 0.5)


def trust(
    blocks: BlockFigures,
    windows: WindowFigures,
    *,
    impact_sum: Array,
    uses: Array,
    expert_bytes: Array,
    settings: TrustSettings = DEFAULTS,
) -> Trust:
    """Convergence; stability and efficiency are told beside it and have weight 0 since version 2.

    Version 1 was 0.7, 0.1 and 0.2 of the three, of impact itself in blocks of 128 tokens, against the layer's median.
    With other weights, the interval is convergence's, the others are points in it.
    """
    converged = convergence(blocks, settings)
    stable = stability(windows, settings)
    efficient = efficiency(impact_sum, uses, expert_bytes, settings)
    rest = settings.stability_weight * stable + settings.efficiency_weight * efficient
    value, low, high = (settings.convergence_weight * part + rest for part in converged)
    return Trust(value, low, high, converged.value, stable, efficient)
