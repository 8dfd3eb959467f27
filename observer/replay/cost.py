"""What an outcome costs: misses, bytes, seconds, evictions and how many of these were soon regretted, by phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from observer.replay.blocks import block_of, interval
from observer.replay.simulate import Outcome
from observer.replay.trace import Trace

ALL, PREFILL, DECODE = "all", "prefill", "decode"
BLOCKS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a policy with a budget would have cost."""

    phase: str  # whose passes are counted; all of them were replayed
    policy: str
    experts: int
    nbytes: int  # of so many of the largest experts, or the budget itself if it is one in bytes
    is_own: bool  # what the run had
    accesses: int
    hits: int
    misses: int
    miss_ratio: float
    low: float  # 90% interval of the miss ratio, from blocks of passes
    high: float
    bytes_read: int
    seconds: float  # to read them one after the other, nothing overlapped
    evictions: int
    reloads_soon: int  # evictions after which the expert was needed again within so many tokens


def phases(trace: Trace) -> dict[str, NDArray[np.bool_]]:
    """The passes of each phase that accesses anything, [passes]; those of all phases first."""
    found = {ALL: np.ones(len(trace.tokens), np.bool_), PREFILL: ~trace.is_decode, DECODE: trace.is_decode}
    return {name: passes for name, passes in found.items() if passes[trace.pass_index].any()}


class Bill:
    """Sums outcomes of one trace up, for each of the phases that are to be told apart."""

    def __init__(
        self, trace: Trace, counted: Mapping[str, NDArray[np.bool_]], *, bytes_per_s: float, soon_tokens: int
    ) -> None:
        self._trace, self._bytes_per_s, self._soon_tokens = trace, bytes_per_s, soon_tokens
        self._clock, self._uses = trace.clock(), uses_in_order(trace)
        self._counted = {
            name: (passes, passes[trace.pass_index], block_of(np.cumsum(passes) - 1, int(passes.sum()), BLOCKS))
            for name, passes in counted.items()
        }

    def costs(self, outcome: Outcome, *, policy: str, experts: int, nbytes: int, is_own: bool) -> list[Cost]:
        """What it costs in each phase."""
        trace = self._trace
        soon = tokens_until_reload(trace, outcome, self._clock, self._uses) <= self._soon_tokens
        at = trace.pass_index[outcome.evicted_at]
        found = []
        for name, (passes, mine, block) in self._counted.items():
            hit, ours = outcome.hit[mine], passes[at]
            read = int(trace.nbytes[trace.expert[mine & ~outcome.hit]].sum())
            misses = len(hit) - int(hit.sum())
            low, high = interval(~hit, block[trace.pass_index[mine]], BLOCKS)
            found.append(
                Cost(
                    phase=name,
                    policy=policy,
                    experts=experts,
                    nbytes=nbytes,
                    is_own=is_own,
                    accesses=len(hit),
                    hits=len(hit) - misses,
                    misses=misses,
                    miss_ratio=misses / len(hit),
                    low=float(low),
                    high=float(high),
                    bytes_read=read,
                    seconds=read / self._bytes_per_s,
                    evictions=int(ours.sum()),
                    reloads_soon=int(soon[ours].sum()),
                )
            )
        return found


def uses_in_order(trace: Trace) -> NDArray[np.int64]:
    """Each access as expert x (accesses + 1) + index, ascending: where the next use of an expert is looked up."""
    return np.sort(trace.expert.astype(np.int64) * (len(trace) + 1) + np.arange(len(trace)))


def reloads(trace: Trace, outcome: Outcome, uses: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """For each eviction the index of the access that loads its expert again, [evictions]; len(trace) if none."""
    uses = uses_in_order(trace) if uses is None else uses
    wanted = outcome.evicted.astype(np.int64) * (len(trace) + 1) + outcome.evicted_at
    found = np.searchsorted(uses, wanted, side="right")
    expert, index = np.divmod(uses[np.minimum(found, len(trace) - 1)], len(trace) + 1)
    return np.where((found < len(trace)) & (expert == outcome.evicted), index, len(trace))


def tokens_until_reload(
    trace: Trace, outcome: Outcome, clock: NDArray[np.int64], uses: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """For each eviction the tokens until its expert is used again, [evictions], infinite if never."""
    reload = reloads(trace, outcome, uses)
    back = reload < len(trace)
    waits = np.full(len(reload), np.inf)
    waits[back] = clock[trace.pass_index[reload[back]]] - clock[trace.pass_index[outcome.evicted_at[back]]]
    return waits
