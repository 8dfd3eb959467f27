"""What an outcome costs: misses, bytes, seconds, evictions and how many of these were soon regretted, by phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from observer.replay.blocks import block_of, interval
from observer.replay.simulate import Outcome
from observer.replay.trace import Trace, in_order

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
        self._clock = trace.clock()
        self._counted = {name: _Counted.of(trace, passes) for name, passes in counted.items()}

    def costs(self, outcome: Outcome, *, policy: str, experts: int, nbytes: int, is_own: bool) -> list[Cost]:
        """What it costs in each phase."""
        trace = self._trace
        missed = np.flatnonzero(~outcome.hit)
        missed_in, missed_bytes = trace.pass_index[missed], trace.nbytes[trace.expert[missed]]
        evicted_in = trace.pass_index[outcome.evicted_at]
        soon = tokens_until_reload(trace, outcome, self._clock) <= self._soon_tokens
        found = []
        for name, counted in self._counted.items():
            ours, evicted = counted.passes[missed_in], counted.passes[evicted_in]
            accesses, misses, read = int(counted.accesses.sum()), int(ours.sum()), int(missed_bytes[ours].sum())
            low, high = interval(np.bincount(counted.block[missed_in[ours]], minlength=BLOCKS), counted.accesses)
            found.append(
                Cost(
                    phase=name,
                    policy=policy,
                    experts=experts,
                    nbytes=nbytes,
                    is_own=is_own,
                    accesses=accesses,
                    hits=accesses - misses,
                    misses=misses,
                    miss_ratio=misses / accesses,
                    low=float(low),
                    high=float(high),
                    bytes_read=read,
                    seconds=read / self._bytes_per_s,
                    evictions=int(evicted.sum()),
                    reloads_soon=int(soon[evicted].sum()),
                )
            )
        return found


class _Counted(NamedTuple):
    """Passes that are counted together."""

    passes: NDArray[np.bool_]  # [passes]
    block: NDArray[np.int64]  # [passes] of those that count, in their order
    accesses: NDArray[np.int64]  # [blocks]

    @classmethod
    def of(cls, trace: Trace, passes: NDArray[np.bool_]) -> _Counted:
        block = block_of(np.cumsum(passes) - 1, int(passes.sum()), BLOCKS)
        return cls(passes, block, np.bincount(block[trace.pass_index[passes[trace.pass_index]]], minlength=BLOCKS))


def reloads(trace: Trace, outcome: Outcome) -> NDArray[np.int64]:
    """For each eviction the index of the access that loads its expert again, [evictions]; len(trace) if none.

    Loads and evictions of an expert take turns, a load first: its n-th eviction ends with its load n + 1.
    """
    count = len(trace.keys)
    loads = np.flatnonzero(~outcome.hit)
    loads = loads[in_order(trace.expert[loads], count)]
    first = np.searchsorted(trace.expert[loads], np.arange(count + 1))  # place of an expert's first load
    order = in_order(outcome.evicted, count)
    evicted = outcome.evicted[order]
    turn = np.arange(len(order)) - np.searchsorted(evicted, np.arange(count))[evicted]
    place = first[evicted] + turn + 1
    found = np.full(len(order), len(trace))
    again = place < first[evicted + 1]
    found[order[again]] = loads[place[again]]
    return found


def tokens_until_reload(trace: Trace, outcome: Outcome, clock: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each eviction the tokens until its expert is used again, [evictions], infinite if never."""
    reload = reloads(trace, outcome)
    back = reload < len(trace)
    waits = np.full(len(reload), np.inf)
    waits[back] = clock[trace.pass_index[reload[back]]] - clock[trace.pass_index[outcome.evicted_at[back]]]
    return waits
