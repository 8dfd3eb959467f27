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
         runs the same passes. Where that model does not fit the machine, the bound is that of reading alone
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from segmoe.survey import Survey, survey
from segmoe.units import format_bytes, parse_bytes
from tests.benchmarks import wide
from tests.benchmarks.cold import cold, just_enough
from tests.benchmarks.contender import Contender, DiedError
from tests.benchmarks.memory import NoCapError, drop_cached, hard_cap
from tests.benchmarks.rounds import CAPS, Bench, Row

MEMORY = ("anonymous", "mapped")
OTHERWISE = "25%"  # the budget at which copied experts are measured beside mapped ones, and plain other weights


def _costs(contender: Contender) -> tuple[str, str, str]:
    return f"{contender.open_s:.1f} s", format_bytes(contender.peak_bytes), format_bytes(contender.mapped_bytes)


def _beside(found: Survey, contender: Contender, experts: int) -> str:
    return format_bytes(contender.beside(found.non_expert_bytes + experts * found.components[0].expert_bytes))


def warm(bench: Bench) -> None:
    """Everything in the page cache, no cap."""
    found = survey(bench.path)
    total = found.components[0].experts_expected
    drop_cached(bench.files)  # who reads first decides in which pieces the kernel caches a file: let it be segmoe
    with ExitStack() as stack:
        turns = []
        ways = {name: {"experts": experts} for name, experts in bench.budgets(total).items()}
        if OTHERWISE in ways:
            ways[f"{OTHERWISE}, copied"] = {**ways[OTHERWISE], "mapped": False}
            ways[f"{OTHERWISE}, others plain"] = {**ways[OTHERWISE], "plain": True}
        for name, way in ways.items():
            contender = stack.enter_context(Contender(bench.threads))
            contender.open(bench.path, kind="segmoe", **way)
            contender.run(seed=len(turns), passes=bench.settling, tokens=bench.prompt_tokens, watch=True)
            if way["experts"] == total:
                contender.pack(passes=bench.settling, tokens=bench.prompt_tokens)
            bench.settle(contender)
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
        table = Table("contender", "opened", *MEMORY, "beside", *columns)
        held = {f"segmoe, {name}": way["experts"] for name, way in ways.items()}
        for row, contender in turns:
            rates = (cell for task in bench.tasks for cell in row.cells(task, base))
            beside = _beside(found, contender, held[row.name]) if row.name in held else ""
            table.add_row(row.name, *_costs(contender), beside, *rates)
    bench.console.print(
        f"[bold]Warm[/bold]: tokens a second and ratio to stock eager; {total} experts of "
        f"{format_bytes(found.components[0].expert_bytes)}, other weights {format_bytes(found.non_expert_bytes)}",
        table,
        f"The cache and its events take {own:.2%} of a decode step (median, {fullest} in memory)",
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
    fitting = [count for count in range(1, one.experts_expected + 1) if just_enough(found, count)[1] <= cap_bytes]
    experts = max(fitting, default=1)
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
