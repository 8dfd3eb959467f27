"""Every policy at every budget: misses, bytes, seconds, evictions and how many of these were soon regretted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from observer.replay.belady import belady, next_uses
from observer.replay.simulate import Outcome, simulate
from observer.replay.trace import Trace
from segmoe.events import ExpertKey
from segmoe.policies import POLICIES, make_rule

BELADY = "belady"
SOON_TOKENS = 16
SHARES = (0.1, 0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a policy with a budget would have cost."""

    policy: str
    experts: int
    accesses: int
    hits: int
    misses: int
    miss_ratio: float
    bytes_read: int
    seconds: float  # to read them one after the other, nothing overlapped
    evictions: int
    reloads_soon: int  # evictions after which the expert was loaded again within so many tokens


def sweep(
    trace: Trace,
    policies: Iterable[str],
    budgets: Sequence[int],
    *,
    bytes_per_s: float,
    soon_tokens: int = SOON_TOKENS,
    trust: Mapping[ExpertKey, float] | None = None,
) -> list[Cost]:
    """The cost of each policy at each budget, in experts."""
    following, clock = next_uses(trace), trace.clock()
    return [
        cost(trace, policy, experts, run_one(trace, policy, experts, trust), following, clock, bytes_per_s, soon_tokens)
        for policy in policies
        for experts in budgets
    ]


def run_one(trace: Trace, policy: str, experts: int, trust: Mapping[ExpertKey, float] | None = None) -> Outcome:
    """Replay under a policy of segmoe, or under Belady."""
    return (
        belady(trace, experts=experts)
        if policy == BELADY
        else simulate(trace, make_rule(policy), experts=experts, trust=trust)
    )


def cost(
    trace: Trace,
    policy: str,
    experts: int,
    outcome: Outcome,
    following: NDArray[np.int64],
    clock: NDArray[np.int64],
    bytes_per_s: float,
    soon_tokens: int,
) -> Cost:
    """Sum an outcome up."""
    read = int(trace.nbytes[trace.expert[~outcome.hit]].sum())
    waits = tokens_until_reload(trace, outcome, clock)
    return Cost(
        policy=policy,
        experts=experts,
        accesses=len(trace),
        hits=len(trace) - outcome.misses,
        misses=outcome.misses,
        miss_ratio=outcome.miss_ratio,
        bytes_read=read,
        seconds=read / bytes_per_s,
        evictions=len(outcome.evicted),
        reloads_soon=int((waits <= soon_tokens).sum()),
    )


def tokens_until_reload(trace: Trace, outcome: Outcome, clock: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each eviction the tokens until its expert is used again, [evictions], infinite if never."""
    reload = reloads(trace, outcome)
    back = reload < len(trace)
    waits = np.full(len(reload), np.inf)
    waits[back] = clock[trace.pass_index[reload[back]]] - clock[trace.pass_index[outcome.evicted_at[back]]]
    return waits


def reloads(trace: Trace, outcome: Outcome) -> NDArray[np.int64]:
    """For each eviction the index of the access that loads its expert again, [evictions]; len(trace) if none."""
    order = np.argsort(trace.expert, kind="stable")
    combined = trace.expert[order].astype(np.int64) * (len(trace) + 1) + order
    wanted = outcome.evicted.astype(np.int64) * (len(trace) + 1) + outcome.evicted_at
    found = np.searchsorted(combined, wanted, side="right")
    inside = np.minimum(found, len(trace) - 1)
    same = (found < len(trace)) & (trace.expert[order[inside]] == outcome.evicted)
    return np.where(same, order[inside], len(trace))


def default_budgets(trace: Trace) -> list[int]:
    """A tenth, a quarter, half and three quarters of all experts."""
    return sorted({max(1, round(share * len(trace.keys))) for share in SHARES})


def default_policies(trust: Mapping[ExpertKey, float] | None) -> list[str]:
    """All policies that can be replayed, and those that keep layers level, with Belady at the end."""
    names = [name for name, rule in POLICIES.items() if trust or not rule.uses_trust]
    return [*names, *(f"{name}-per-layer" for name in names), BELADY]
