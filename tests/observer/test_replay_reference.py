"""Replay against libCacheSim (C), which shares no line with it, on access traces of several kinds."""

from __future__ import annotations

from pathlib import Path

import libcachesim
import numpy as np
import pytest

from observer.replay.belady import belady
from observer.replay.curve import lru_miss_ratios
from observer.replay.simulate import simulate
from observer.replay.trace import Trace
from segmoe.policies import POLICIES
from tests.observer.traces import drifting, loops, of_accesses, write_oracle, zipf

TRACES = {
    "zipf": lambda: zipf(20_000, 500),
    "flat": lambda: zipf(20_000, 300, alpha=0.2, seed=1),
    "loops": lambda: loops(10_000, 120),
    "drifting": lambda: drifting(20_000, 400),
}
SIZES = (1, 7, 60, 119, 250)


def reference(policy: str, trace: Trace, size: int, folder: Path) -> int:
    """Misses that libCacheSim counts."""
    path = write_oracle(trace, folder / "trace.oracleGeneral")
    reader = libcachesim.TraceReader(str(path), libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    cache = getattr(libcachesim, policy)(cache_size=size, hashpower=16, reader=reader)
    ratio, _ = cache.process_trace(reader)
    return round(ratio * len(trace))


@pytest.mark.parametrize("kind", TRACES)
def test_lru_lfu_and_belady_miss_as_often_as_in_libcachesim(kind: str, tmp_path: Path) -> None:
    trace = of_accesses(TRACES[kind]())
    for size in SIZES:
        ours = {
            "LRU": simulate(trace, POLICIES["lru"], experts=size, plain=True).misses,
            "LFU": simulate(trace, POLICIES["lfu"], experts=size, plain=True).misses,
            "Belady": belady(trace, experts=size).misses,
        }
        assert ours == {name: reference(name, trace, size, tmp_path) for name in ours}, size


@pytest.mark.parametrize("kind", TRACES)
def test_the_curve_from_stack_distances_is_lru_at_every_budget(kind: str) -> None:
    trace = of_accesses(TRACES[kind]()[:4000])
    curve = lru_miss_ratios(trace)
    budgets = [1, 2, 3, 10, 50, 119, 120, 121, len(trace.keys)]
    found = [
        simulate(trace, POLICIES["lru"], experts=n, plain=True).miss_ratio for n in budgets if n <= len(trace.keys)
    ]
    assert curve[0] == 1
    np.testing.assert_allclose(curve[[n for n in budgets if n <= len(trace.keys)]], found, atol=1e-12)
