"""Every policy at every budget. What an outcome costs is cost.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from observer.replay.belady import belady
from observer.replay.cost import Bill, Cost, phases
from observer.replay.simulate import Outcome, simulate
from observer.replay.trace import Trace
from segmoe.events import ExpertKey
from segmoe.policies import POLICIES, make_rule

BELADY = "belady"
SOON_TOKENS = 16
SHARES = (0.1, 0.25, 0.5, 0.75)
POINTS = 24  # budgets of a curve


class Setting(NamedTuple):
    """A policy with a budget, in bytes where these are given."""

    policy: str
    experts: int
    nbytes: int | None = None


def sweep(
    trace: Trace,
    settings: Iterable[Setting],
    *,
    bytes_per_s: float,
    soon_tokens: int = SOON_TOKENS,
    trust: Mapping[ExpertKey, float] | None = None,
    own: Setting | None = None,
    counted: Mapping[str, NDArray[np.bool_]] | None = None,
) -> list[Cost]:
    """The cost of each setting, counted over all passes and over those of each phase."""
    bill = Bill(trace, phases(trace) if counted is None else counted, bytes_per_s=bytes_per_s, soon_tokens=soon_tokens)
    return [
        cost
        for setting in settings
        for cost in bill.costs(
            run_one(trace, *setting, trust=trust),
            policy=setting.policy,
            experts=setting.experts,
            nbytes=memory(trace, setting.experts) if setting.nbytes is None else setting.nbytes,
            is_own=setting == own,
        )
    ]


def run_one(
    trace: Trace,
    policy: str,
    experts: int,
    nbytes: int | None = None,
    *,
    trust: Mapping[ExpertKey, float] | None = None,
) -> Outcome:
    """Replay under a policy of segmoe, or under Belady; a budget in bytes goes before one in experts."""
    most = experts if nbytes is None else None
    if policy == BELADY:
        return belady(trace, experts=most, nbytes=nbytes)
    return simulate(trace, make_rule(policy), experts=most, nbytes=nbytes, trust=trust)


def memory(trace: Trace, experts: int) -> int:
    """Bytes that so many experts may need: those of the largest."""
    return int(np.sort(trace.nbytes)[::-1][:experts].sum())


def grid(policies: Iterable[str], budgets: Sequence[int], own: Setting | None = None) -> Iterator[Setting]:
    """Each policy with each budget; where that is what the run had, exactly as the run had it."""
    for policy in policies:
        for experts in budgets:
            setting = Setting(policy, experts)
            yield own if own is not None and setting == own._replace(nbytes=None) else setting


def default_budgets(trace: Trace, own: Setting | None = None) -> list[int]:
    """A tenth, a quarter, half and three quarters of all experts, and what the run had."""
    return _with_own({max(1, round(share * len(trace.keys))) for share in SHARES}, own)


def curve_budgets(trace: Trace, own: Setting | None = None) -> list[int]:
    """Evenly spaced from one expert to all, and what the run had."""
    return _with_own(set(np.linspace(1, len(trace.keys), POINTS).round().astype(int).tolist()), own)


def _with_own(budgets: set[int], own: Setting | None) -> list[int]:
    return sorted(budgets if own is None else budgets | {own.experts})


def default_policies(trust: Mapping[ExpertKey, float] | None, own: Setting | None = None) -> list[str]:
    """All policies that can be replayed, those that keep layers level, the run's own, and Belady at the end."""
    names = [name for name, rule in POLICIES.items() if trust or not rule.uses_trust]
    names += [f"{name}-per-layer" for name in names]
    if own is not None and own.policy not in names:
        names.append(own.policy)
    return [*names, BELADY]
