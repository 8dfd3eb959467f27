"""The smallest budget that reaches a hit rate, the policy that needs least, and which experts to pin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from observer.errors import ObserverError
from observer.replay.blocks import block_of, interval
from observer.replay.cost import BLOCKS
from observer.replay.sweep import memory, run_one
from observer.replay.trace import Trace
from segmoe.events import ExpertKey

ALWAYS = 0.9  # an expert that so many passes use is worth a pin


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A policy with the smallest budget that reached the hit rate on the trace."""

    policy: str
    experts: int
    nbytes: int  # of so many of the largest experts
    hit_rate: float
    low: float  # 90% interval of the hit rate, from resampling blocks of passes
    high: float


def plan(
    trace: Trace, hit_rate: float, policies: Iterable[str], trust: Mapping[ExpertKey, float] | None = None
) -> list[Plan]:
    """For each policy the smallest budget that reaches the hit rate, least memory first.

    Found by halving, as if more memory never hurt; that is proved for LRU and Belady, and nearly so for the others.
    """
    first_uses = len(np.unique(trace.expert))
    best = 1 - first_uses / max(len(trace), 1)
    if hit_rate > best:
        raise ObserverError(
            f"no budget reaches a hit rate of {hit_rate:.3f}: with all experts in memory it is {best:.3f}, since each "
            "of them is read once; ask for less, or record a longer run"
        )
    return sorted((_smallest(trace, hit_rate, policy, trust) for policy in policies), key=lambda found: found.experts)


def worth_a_pin(trace: Trace, limit: int = 16) -> list[tuple[ExpertKey, float]]:
    """Experts that nearly every pass uses, with the share of passes, most used first."""
    share = np.bincount(trace.expert, minlength=len(trace.keys)) / max(len(trace.tokens), 1)
    order = np.argsort(-share, kind="stable")[:limit]
    return [(trace.keys[number], float(share[number])) for number in order if share[number] >= ALWAYS]


def _smallest(trace: Trace, hit_rate: float, policy: str, trust: Mapping[ExpertKey, float] | None) -> Plan:
    low, high = 0, len(trace.keys)  # the first is too small, the last is enough
    outcome = run_one(trace, policy, high, trust=trust)
    while high - low > 1:
        middle = (low + high) // 2
        tried = run_one(trace, policy, middle, trust=trust)
        if 1 - tried.miss_ratio >= hit_rate:
            high, outcome = middle, tried
        else:
            low = middle
    block = block_of(trace.pass_index, len(trace.tokens), BLOCKS)
    low_rate, high_rate = interval(outcome.hit, block, BLOCKS)
    return Plan(
        policy=policy,
        experts=high,
        nbytes=memory(trace, high),
        hit_rate=1 - outcome.miss_ratio,
        low=float(low_rate),
        high=float(high_rate),
    )
