"""Residency against what else there is: warm, from a cold disk, and under a hard cap on memory.

    python -m tests.benchmarks.residency FOLDER [--part warm] [--cap 1.9GB] [--threads 2] [--rounds 5]

FOLDER is written by wide.py if it is not there. Each contender is a process of its own; they take turns, never at
once, and every ratio is that of a pair which ran the same random ids one after the other. Decoding gives one id a pass,
with a KV cache, so that routing varies from step to step as no repeated text does; prefill gives 256.

warm     all files in the page cache: stock transformers wholly in memory (eager, batched_mm, grouped_mm) and segmoe
         with 16 experts, 10, 25, 50 and 100% of them
cold     in memory that just holds the budget and what is read early, once it is filled; the kernel forgets the files
         before each pass. The bound is what reading the missed experts takes at the rate that the disk shows when as
         many are kept, or what the in-memory model's pass takes, whichever is longer: perfect overlap. Beside it what
         this machine's disk and cores reach at once: another process reads as many bytes while the in-memory model
         runs the same passes
capped   a memory cgroup around the process, page cache included, which is what a small machine is: accelerate's
         offload to disk, as `device_map="auto"` arranges it in half of the cap and with the experts alone on disk, and
         segmoe with what the cap leaves for experts

Memory is two peaks, polled while a contender opens and while it warms up: anonymous memory (RssAnon) and mapped files
(RssFile, some 300 MB of which are the libraries'; when stock opens, the checkpoint).
"""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from segmoe.direct import OTHERS_BYTES
from segmoe.memory import most_early
from segmoe.runtime import THREADS
from segmoe.survey import survey
from segmoe.units import format_bytes, parse_bytes
from tests.benchmarks import wide
from tests.benchmarks.contender import Contender, DiedError
from tests.benchmarks.memory import NoCapError, drop_cached, hard_cap, read_rate, reading

MEMORY = ("anonymous", "mapped")
COPIED = "25%"  # the budget at which copies are measured beside mapped experts
CAPS = ("1.8GB", "1.9GB", "2.6GB")  # 1.9 is half of the 3-layer model
WITHOUT_PREFILL = ("batched_mm",)
"""Copies the weights of each pick: 256 tokens x 8 picks of 9 MB are 19 GB, and took minutes where they fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The checkpoint and how long to measure."""

    path: Path
    threads: int = 2
    rounds: int = 5
    limit_s: float = 30.0  # for the rounds of one task; then no further round begins
    settling: int = 12  # turns before anything is timed: experts that stay get packed
    steps: int = 12
    prompt_tokens: int = 256
    caps: tuple[str, ...] = CAPS
    shares: tuple[int, ...] = (10, 25, 50, 100)  # per cent of the experts that are in memory, beside 16 of them
    console: Console = field(default_factory=lambda: Console(width=None if sys.stdout.isatty() else 120))

    def seeds(self) -> Iterator[int]:
        """One number a round: 0, in which all warm up and memory is watched, and at least one that is timed."""
        began = time.perf_counter()
        for seed in range(self.rounds + 1):
            if seed > 1 and time.perf_counter() - began > self.limit_s:
                return
            yield seed

    def settle(self, contender: Contender) -> None:
        """Decode until the budget is filled and experts that stay are packed."""
        contender.run(seed=0, passes=self.settling * self.steps, tokens=1)

    @property
    def files(self) -> list[Path]:
        """The shards."""
        return sorted(self.path.glob("*.safetensors"))

    def budgets(self, total: int, below: int = 101) -> dict[str, int]:
        """Name -> experts in memory."""
        shares = {f"{share}%": max(1, total * share // 100) for share in self.shares if share < below}
        return {"16 experts": 16} | shares

    @property
    def tasks(self) -> dict[str, dict[str, int]]:
        """Passes and tokens a pass."""
        return {
            "decode": {"passes": self.steps, "tokens": 1},
            "prefill": {"passes": 1, "tokens": self.prompt_tokens},
        }


@dataclass(slots=True)
class Row:
    """One contender's rates by task, a value a round."""

    name: str
    implementation: str | None = None
    rates: dict[str, list[float]] = field(default_factory=dict)

    def take_turn(self, contender: Contender, task: str, seed: int, watch: bool, **work: Any) -> None:
        """Run one task once; a turn that is watched is not timed."""
        if task == "prefill" and self.implementation in WITHOUT_PREFILL:
            return
        if self.implementation is not None:
            contender.implement(self.implementation)
        took = contender.run(seed=seed, watch=watch, **work)
        rate = work["passes"] * work["tokens"] / sum(took.seconds)
        click.echo(f"{self.name}, {task} {seed}: {rate:,.2f} tok/s{', not counted' if watch else ''}", err=True)
        if not watch:
            self.rates.setdefault(task, []).append(rate)

    def cells(self, task: str, base: Row) -> tuple[str, str]:
        """The median rate and the median of the ratios to another row, pair by pair."""
        if task not in self.rates:
            return "-", "-"
        pairs = [
            mine / other for mine, other in zip(self.rates[task], base.rates[task], strict=False)
        ]  # a limit may end one side earlier
        return f"{statistics.median(self.rates[task]):,.1f}", f"{statistics.median(pairs):.2f}"


def _costs(contender: Contender) -> tuple[str, str, str]:
    return f"{contender.open_s:.1f} s", format_bytes(contender.peak_bytes), format_bytes(contender.mapped_bytes)


def warm(bench: Bench) -> None:
    """Everything in the page cache, no cap."""
    found = survey(bench.path)
    total = found.components[0].experts_expected
    drop_cached(bench.files)  # who reads first decides in which pieces the kernel caches a file: let it be segmoe
    with ExitStack() as stack:
        turns = []
        ways = {name: {"experts": experts} for name, experts in bench.budgets(total).items()}
        ways |= {f"{name}, copied": {**way, "mapped": False} for name, way in ways.items() if name == COPIED}
        for name, way in ways.items():
            contender = stack.enter_context(Contender(bench.threads))
            contender.open(bench.path, kind="segmoe", **way)
            contender.run(seed=len(turns), passes=bench.settling, tokens=bench.prompt_tokens)
            turns.append((Row(f"segmoe, {name}"), contender))
        stock = stack.enter_context(Contender(bench.threads))
        stock.open(bench.path, kind="stock")
        turns[:0] = [(Row(f"stock {name}", name), stock) for name in ("eager", "batched_mm", "grouped_mm")]
        for task in reversed(bench.tasks):  # prefill first: it fills a cache that holds all
            for seed in bench.seeds():
                for row, contender in turns:
                    row.take_turn(contender, task, seed, watch=not seed, **bench.tasks[task])
        fullest = max((way["experts"], name) for name, way in ways.items())[1]
        largest = next(contender for row, contender in turns if row.name == f"segmoe, {fullest}")
        own = statistics.median(largest.bookkeep(4 * bench.steps, seed=0))
        base = turns[0][0]
        counts = {task: len(base.rates[task]) for task in bench.tasks}
        columns = (cell for task, count in counts.items() for cell in (f"{task} ({count} rounds)", "ratio"))
        table = Table("contender", "opened", *MEMORY, *columns)
        for row, contender in turns:
            rates = (cell for task in bench.tasks for cell in row.cells(task, base))
            table.add_row(row.name, *_costs(contender), *rates)
    bench.console.print(
        f"[bold]Warm[/bold]: tokens a second and ratio to stock eager; {total} experts of "
        f"{format_bytes(found.components[0].expert_bytes)}, other weights {format_bytes(found.non_expert_bytes)}",
        table,
        f"The cache and its events take {own:.2%} of a decode step (median, {fullest} in memory)",
        sep="\n",
    )


class ColdTurn(NamedTuple):
    """A task of one contender, once."""

    seconds: list[float]  # [passes]
    missed: list[int]  # [passes]
    prefetched: int
    wasted: int
    rate: float  # of the disk just behind it, bytes a second


def cold(bench: Bench) -> None:
    """Every missed expert comes from the disk."""
    found = survey(bench.path)
    one = found.components[0]
    taken: dict[tuple[str, str], list[ColdTurn]] = {}
    budgets = bench.budgets(one.experts_expected, below=50)
    for name, experts in budgets.items():
        held = experts + most_early(experts, THREADS)
        with (
            hard_cap(found.non_expert_bytes + held * one.expert_bytes + OTHERS_BYTES) as cap,
            Contender(bench.threads, cap) as contender,
        ):
            contender.open(bench.path, kind="segmoe", experts=experts)
            bench.settle(contender)
            for task, work in bench.tasks.items():
                for seed in bench.seeds():
                    turn = contender.run(seed=seed, cold=True, **work)
                    click.echo(f"segmoe, {name}, {task} {seed}: {sum(turn.seconds):.2f} s", err=True)
                    if seed:
                        rate = read_rate(bench.files, one.expert_bytes, kept=held)
                        taken.setdefault((name, task), []).append(ColdTurn(*turn, rate))
    columns = ("tok/s", "of the bound", "of both at once", "missed experts a pass", "prefetched", "wasted")
    table = Table("contender", "task", *columns)
    beside: list[float] = []  # the disk's rate while the in-memory model runs
    compute_s: dict[str, float] = {}  # a pass
    with Contender(bench.threads) as stock:  # opened last: what it has mapped, the kernel would not forget
        stock.open(bench.path, kind="stock", experts_implementation="eager")
        for task, work in bench.tasks.items():
            stock.run(seed=0, **work)
            compute_s[task] = statistics.median(stock.run(seed=1, **work).seconds)
        for (name, task), turns in taken.items():
            work, held = bench.tasks[task], budgets[name]
            shares = []
            for seed, turn in enumerate(turns, 1):
                with reading(bench.files, one.expert_bytes, sum(turn.missed), kept=held) as read_s:
                    computed_s = sum(stock.run(seed=seed, **work).seconds)
                    both_s = max(computed_s, read_s())
                beside.append(sum(turn.missed) * one.expert_bytes / read_s())
                bound_s = sum(max(missed * one.expert_bytes / turn.rate, compute_s[task]) for missed in turn.missed)
                shares.append([least / sum(turn.seconds) for least in (bound_s, both_s)])
            rate = statistics.median(work["passes"] * work["tokens"] / sum(turn.seconds) for turn in turns)
            of_bound, of_both = (f"{statistics.median(share):.2f}" for share in zip(*shares, strict=True))
            missed = statistics.median(missed for turn in turns for missed in turn.missed)
            total = sum(sum(turn.missed) for turn in turns)
            early = (sum(turn.prefetched for turn in turns), sum(turn.wasted for turn in turns))
            shown = (f"{missed:g}", *(f"{count / total:.0%}" for count in early))
            table.add_row(f"segmoe, {name}", task, f"{rate:,.2f}", of_bound, of_both, *shown)
    disk = [turn.rate for turns in taken.values() for turn in turns]
    in_memory = ", ".join(f"{task} {seconds * 1e3:,.0f} ms" for task, seconds in compute_s.items())
    bench.console.print(
        "[bold]Cold[/bold]: medians; the bound is the longer of reading what is missed and the in-memory model's pass; "
        "of what is missed, the share that was prefetched, and what was wasted beside it",
        table,
        f"disk: {min(disk) / 1e9:.2f} to {max(disk) / 1e9:.2f} GB/s by itself, just behind each turn; "
        f"{min(beside) / 1e9:.2f} to {max(beside) / 1e9:.2f} beside the in-memory model\nin-memory pass: {in_memory}",
        sep="\n",
    )


def capped(bench: Bench) -> None:
    """A hard cap around each process, page cache included."""
    for text in bench.caps:
        table = Table(text, "opened", *MEMORY, *(cell for task in bench.tasks for cell in (task, "ratio")))
        base: Row | None = None
        for name, outcome in _under(bench, parse_bytes(text)):
            if isinstance(outcome, str):
                table.add_row(name, outcome)
                continue
            row, contender = outcome
            base = base or row
            rates = (cell for task in bench.tasks for cell in row.cells(task, base))
            table.add_row(name, *_costs(contender), *rates)
        bench.console.print("[bold]Capped[/bold]: tokens a second and ratio to the first that runs", table, sep="\n")


def _under(bench: Bench, cap_bytes: int) -> Iterator[tuple[str, tuple[Row, Contender] | str]]:
    found = survey(bench.path)
    one = found.components[0]
    for name, memory in (("accelerate, auto", cap_bytes // 2), ("accelerate, experts on disk", None)):
        with tempfile.TemporaryDirectory(dir=bench.path.parent) as offload:
            yield name, _attempt(bench, cap_bytes, name, {"kind": "accelerate", "memory": memory, "offload": offload})
    left = (cap_bytes - found.non_expert_bytes - OTHERS_BYTES) // one.expert_bytes
    experts = max(1, min(one.experts_expected, left - most_early(left, THREADS)))
    for held in sorted({min(16, experts), experts}):
        name = f"segmoe, {held} experts"
        yield name, _attempt(bench, cap_bytes, name, {"kind": "segmoe", "experts": held})


def _attempt(bench: Bench, cap_bytes: int, name: str, settings: dict[str, Any]) -> tuple[Row, Contender] | str:
    row = Row(name)
    drop_cached(bench.files)  # pages that others have read would not count
    try:
        with hard_cap(cap_bytes) as cap, Contender(bench.threads, cap) as contender:
            contender.open(bench.path, **settings)
            if settings["kind"] == "segmoe":  # the others keep nothing from pass to pass
                bench.settle(contender)
            for task, work in bench.tasks.items():
                for seed in bench.seeds():
                    row.take_turn(contender, task, seed, watch=not seed, **work)
    except DiedError as died:
        return str(died)
    return row, contender


PARTS: dict[str, Callable[[Bench], None]] = {"warm": warm, "cold": cold, "capped": capped}


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--part", "parts", type=click.Choice(list(PARTS)), multiple=True, help="Only this part.")
@click.option("--cap", "caps", multiple=True, default=CAPS, show_default=True, help="Hard caps on memory.")
@click.option("--threads", default=2, show_default=True, help="Threads of each contender.")
@click.option("--rounds", default=5, show_default=True, help="Timed turns of each contender.")
@click.option("--limit", default=30.0, show_default=True, help="Seconds after which a task gets no further round.")
@click.option("--layers", default=wide.LAYERS, show_default=True, help="Layers of a checkpoint that is not there yet.")
@click.option("--smoke", is_flag=True, help="A tiny checkpoint and one round: does it work?")
def main(
    folder: Path,
    parts: tuple[str, ...],
    caps: tuple[str, ...],
    threads: int,
    rounds: int,
    limit: float,
    layers: int,
    smoke: bool,
) -> None:
    """Compare segmoe with stock transformers and with accelerate's offload to disk."""
    wide.write(folder, wide.small() if smoke else wide.config(layers))
    short: dict[str, Any] = (
        {"rounds": 1, "steps": 3, "prompt_tokens": 16, "shares": ()} if smoke else {"rounds": rounds, "limit_s": limit}
    )
    bench = Bench(path=folder, threads=threads, caps=caps, **short)
    for part in parts or PARTS:
        try:
            PARTS[part](bench)
        except NoCapError as reason:
            bench.console.print(f"[bold]{part.capitalize()}[/bold]: left out; {reason}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave no worker, cgroup or copy behind
    main()
