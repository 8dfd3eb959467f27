"""How many accesses a second a replay does on one core, beside libCacheSim (C) on the same trace.

    python -m tests.benchmarks.replay [--accesses 10000000]

Two traces: a Zipf stream over many objects, which libCacheSim is made for, and decode passes of a model of 48 x 128
experts, top-8. Compilation is not counted. Both sides make the same decisions: their miss counts are shown together.
They take turns in one process; rates are medians, and the ratio is that of turns which followed each other. LRU, the
curve and Belady have code of their own, the other policies share the order that the live cache keeps.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import click
import libcachesim
import numpy as np
from rich.console import Console
from rich.table import Table

from observer.replay.belady import belady
from observer.replay.curve import lru_miss_ratios
from observer.replay.simulate import simulate
from observer.replay.trace import Trace
from segmoe.events import ExpertKey
from segmoe.policies import make_rule
from tests.observer.traces import of_accesses, write_oracle, zipf

LAYERS, EXPERTS, TOP_K = 48, 128, 8
CURVE = "lru, whole curve"
POLICIES = ("lru", CURVE, "lfu", "use-rate", "use-rate-per-layer", "random", "belady")
TURNS = 3
THEIRS = {"lru": "LRU", "lfu": "LFU", "belady": "Belady"}


def decode_passes(accesses: int) -> Trace:
    """Each layer picks top-k of its experts, most of them from a neighbourhood that drifts."""
    passes = accesses // (LAYERS * TOP_K)
    rng = np.random.default_rng(0)
    popularity = rng.permuted(np.tile(np.arange(EXPERTS), (LAYERS, 1)), axis=1) * 0.06
    keys = [ExpertKey("model", layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]
    experts = np.empty((passes, LAYERS, TOP_K), np.int32)
    drift = np.zeros((LAYERS, EXPERTS))
    for number in range(passes):
        drift = 0.9 * drift + rng.standard_normal((LAYERS, EXPERTS))
        experts[number] = np.sort(np.argpartition(-(drift - popularity), TOP_K)[:, :TOP_K])
    expert = (experts + np.arange(LAYERS)[None, :, None] * EXPERTS).reshape(-1).astype(np.int32)
    return Trace(
        expert=expert,
        pass_index=np.repeat(np.arange(passes, dtype=np.int32), LAYERS * TOP_K),
        tokens=np.ones(passes, np.int64),
        is_decode=np.ones(passes, np.bool_),
        keys=keys,
        nbytes=np.full(len(keys), 9_437_184),
    )


def ours(name: str, trace: Trace, size: int, plain: bool) -> int:
    """Misses that a replay counts."""
    if name == CURVE:
        return round(float(lru_miss_ratios(trace)[min(size, len(trace.keys))]) * len(trace))
    if name == "belady":
        return belady(trace, experts=size).misses
    return simulate(trace, make_rule(name), experts=size, plain=plain).misses


def theirs(name: str, path: Path, accesses: int, size: int) -> int:
    """Misses that libCacheSim counts; 0 if it has no such policy."""
    if name not in THEIRS:
        return 0
    reader = libcachesim.TraceReader(str(path), libcachesim.TraceType.ORACLE_GENERAL_TRACE)
    ratio, _ = getattr(libcachesim, THEIRS[name])(cache_size=size, hashpower=20, reader=reader).process_trace(reader)
    return round(ratio * accesses)


def measure(title: str, trace: Trace, size: int, *, plain: bool) -> Iterator[tuple[str, ...]]:
    """A row for each policy; CPU seconds."""
    warm = of_accesses(zipf(1000, 50))
    with tempfile.TemporaryDirectory() as folder:
        path = write_oracle(trace, Path(folder) / "trace.oracleGeneral")
        for name in POLICIES:
            ours(name, warm, size, plain)
            turns = []
            for _ in range(TURNS):
                mine, misses = timed(lambda name=name: ours(name, trace, size, plain))
                other, their_misses = timed(lambda name=name: theirs(name, path, len(trace), size))
                turns.append((len(trace) / mine / 1e6, len(trace) / other / 1e6))
            rates, their_rates = zip(*turns, strict=True)
            row = (title, f"{size:,}", name, f"{median(rates):.1f}", f"{misses:,}")
            if name in THEIRS:
                ratio = median(rate / other for rate, other in turns)
                row += (f"{median(their_rates):.1f}", f"{their_misses:,}", f"{ratio:.2f}")
            yield row


def timed(count: Callable[[], int]) -> tuple[float, int]:
    """CPU seconds, and what was counted."""
    began = time.process_time()
    misses = count()
    return time.process_time() - began, misses


@click.command()
@click.option("--accesses", default=10_000_000, show_default=True, help="Of the Zipf trace; a tenth of them in passes.")
@click.option("--objects", default=100_000, show_default=True, help="Of the Zipf trace.")
def main(accesses: int, objects: int) -> None:
    """Print accesses a second."""
    table = Table("trace", "in memory", "policy", "M accesses/s", "misses", "libCacheSim", "misses", "ratio")
    web = of_accesses(zipf(accesses, objects), objects)
    for row in measure(f"zipf, {objects:,} objects", web, objects // 10, plain=True):
        table.add_row(*row)
    table.add_section()
    for row in measure("48 x 128 experts, top-8", decode_passes(accesses // 10), 1536, plain=False):
        table.add_row(*row)
    Console(width=120).print(table, "one core; in passes we keep whom a layer still needs, libCacheSim does not")


if __name__ == "__main__":
    main()
