"""Each eviction joined to its expert's next use: what it cost, and whether Belady would have kept the expert.

An eviction is regretted if the expert's next use is a hit in Belady's cache of the same size on the same trace: then it
could have stayed at no loss elsewhere. Shares are given by groups of trust (or of the policy's own score), with a 90%
interval from resampling blocks of passes, since evictions close to each other are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from observer.replay.belady import belady
from observer.replay.blocks import LEVEL, block_of, resampled
from observer.replay.cost import reloads, tokens_until_reload
from observer.replay.simulate import Outcome
from observer.replay.trace import Trace
from segmoe.events import ExpertKey

BLOCKS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Evictions of experts whose trust, or score, lies between two values."""

    low: float
    high: float
    evictions: int
    reloaded: int  # came back within the trace
    tokens_median: float  # until they came back, of those that did
    bytes_paid: int  # to read them again
    milliseconds_paid: float  # for that at the disk's rate
    regretted: float  # share of evictions that Belady would not have needed
    regretted_low: float
    regretted_high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """All evictions of an outcome, and in groups from the lowest value to the highest."""

    groups: list[Group]
    difference: float  # share regretted in the highest group less that in the lowest
    difference_low: float
    difference_high: float


def trust_of(trace: Trace, outcome: Outcome, trust: Mapping[ExpertKey, float]) -> NDArray[np.float64]:
    """The trust of each evicted expert, NaN if unknown."""
    return np.array([trust.get(key, np.nan) for key in trace.keys])[outcome.evicted]


def regret(
    trace: Trace,
    outcome: Outcome,
    by: NDArray[np.float64],
    *,
    experts: int,
    bytes_per_s: float = 1e9,
    groups: int = 3,
) -> Regret:
    """Judge the evictions in groups of equal size by a value of each, such as trust; NaN is left out."""
    kept = belady(trace, experts=experts).hit
    reload = reloads(trace, outcome)
    back = reload < len(trace)
    regretted = np.zeros(len(reload), np.bool_)
    regretted[back] = kept[reload[back]]
    waits = tokens_until_reload(trace, outcome, trace.clock())
    paid = np.where(back, trace.nbytes[outcome.evicted], 0)
    block = block_of(trace.pass_index[outcome.evicted_at], len(trace.tokens), BLOCKS)
    edges = np.nanquantile(by, np.linspace(0, 1, groups + 1)) if np.isfinite(by).any() else np.zeros(0)
    member = [
        (by >= low) & ((by < high) | (number == groups - 1) & (by <= high))
        for number, (low, high) in enumerate(pairwise(edges))
    ]
    shares = np.array([resampled(regretted[mine], block[mine], BLOCKS) for mine in member]).reshape(len(member), -1)
    found = [
        Group(
            low=float(edges[number]),
            high=float(edges[number + 1]),
            evictions=int(mine.sum()),
            reloaded=int(back[mine].sum()),
            tokens_median=float(np.median(waits[mine & back])) if (mine & back).any() else float("nan"),
            bytes_paid=int(paid[mine].sum()),
            milliseconds_paid=float(paid[mine].sum() / bytes_per_s * 1e3),
            regretted=float(regretted[mine].mean()) if mine.any() else float("nan"),
            regretted_low=float(np.nanpercentile(shares[number], LEVEL[0])),
            regretted_high=float(np.nanpercentile(shares[number], LEVEL[1])),
        )
        for number, mine in enumerate(member)
    ]
    if not found:
        return Regret(groups=[], difference=float("nan"), difference_low=float("nan"), difference_high=float("nan"))
    low, high = np.nanpercentile(shares[-1] - shares[0], LEVEL)
    difference = found[-1].regretted - found[0].regretted
    return Regret(groups=found, difference=difference, difference_low=float(low), difference_high=float(high))
