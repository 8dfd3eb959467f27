"""The cold part of the residency benchmark: every missed expert comes from the disk. What it means is told there."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

import click
from rich.table import Table

from segmoe.direct import OTHERS_BYTES
from segmoe.memory import memory_bytes, most_early
from segmoe.survey import Survey, survey
from tests.benchmarks.contender import Contender
from tests.benchmarks.memory import hard_cap, read_rate, reading
from tests.benchmarks.rounds import Bench


def just_enough(found: Survey, experts: int) -> tuple[int, int]:
    """Experts that a budget and what is read early hold, and bytes of memory that this takes with all else."""
    one = found.components[0].expert_bytes
    held = experts + most_early(experts * one, found.non_expert_bytes, one)
    return held, found.non_expert_bytes + held * one + OTHERS_BYTES


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
    beside_weights: dict[str, str] = {}
    budgets = bench.budgets(one.experts_expected, below=50)
    for name, experts in budgets.items():
        held, needed = just_enough(found, experts)
        with hard_cap(needed) as cap, Contender(bench.threads, cap) as contender:
            contender.open(bench.path, kind="segmoe", experts=experts)
            bench.settle(contender)
            for task, work in bench.tasks.items():
                for seed in bench.seeds():
                    turn = contender.run(seed=seed, cold=True, watch=not seed, **work)
                    click.echo(f"segmoe, {name}, {task} {seed}: {sum(turn.seconds):.2f} s", err=True)
                    if seed:
                        rate = read_rate(bench.files, one.expert_bytes, kept=held)
                        taken.setdefault((name, task), []).append(ColdTurn(*turn, rate))
            weights = found.non_expert_bytes + experts * one.expert_bytes
            beside_weights[name] = f"{contender.beside(weights) / weights:.1%}"
    columns = ("tok/s", "of the bound", "of both at once", "missed experts a pass", "prefetched", "wasted", "beside")
    table = Table("contender", "task", *columns)
    fits = sum(file.stat().st_size for file in bench.files) < memory_bytes()
    beside: list[float] = []  # the disk's rate while the in-memory model runs
    compute_s: dict[str, float] = {}  # a pass
    with Contender(bench.threads) as stock:  # opened last: what it has mapped, the kernel would not forget
        if fits:
            stock.open(bench.path, kind="stock", experts_implementation="eager")
            for task, work in bench.tasks.items():
                stock.run(seed=0, **work)
                compute_s[task] = statistics.median(stock.run(seed=1, **work).seconds)
        for (name, task), turns in taken.items():
            work, held = bench.tasks[task], budgets[name]
            shares = []
            for seed, turn in enumerate(turns, 1):
                read_s = [missed * one.expert_bytes / turn.rate for missed in turn.missed]
                if not fits:
                    shares.append([sum(read_s) / sum(turn.seconds), math.nan])
                    continue
                with reading(bench.files, one.expert_bytes, sum(turn.missed), kept=held) as other_s:
                    computed_s = sum(stock.run(seed=seed, **work).seconds)
                    both_s = max(computed_s, other_s())
                beside.append(sum(turn.missed) * one.expert_bytes / other_s())
                bound_s = sum(max(seconds, compute_s[task]) for seconds in read_s)
                shares.append([least / sum(turn.seconds) for least in (bound_s, both_s)])
            rate = statistics.median(work["passes"] * work["tokens"] / sum(turn.seconds) for turn in turns)
            of_bound, of_both = (f"{statistics.median(share):.2f}" for share in zip(*shares, strict=True))
            of_both = of_both if fits else "-"
            missed = statistics.median(missed for turn in turns for missed in turn.missed)
            total = sum(sum(turn.missed) for turn in turns)
            early = (sum(turn.prefetched for turn in turns), sum(turn.wasted for turn in turns))
            shown = (f"{missed:g}", *(f"{count / total:.0%}" for count in early))
            table.add_row(f"segmoe, {name}", task, f"{rate:,.2f}", of_bound, of_both, *shown, beside_weights[name])
    disk = [turn.rate for turns in taken.values() for turn in turns]
    in_memory = ", ".join(f"{task} {seconds * 1e3:,.0f} ms" for task, seconds in compute_s.items())
    if beside:
        in_memory += f"; the disk {min(beside) / 1e9:.2f} to {max(beside) / 1e9:.2f} GB/s beside it"
    bench.console.print(
        "[bold]Cold[/bold]: medians; the bound is the longer of reading what is missed and the in-memory model's pass; "
        "of what is missed, the share that was prefetched, and what was wasted beside it; beside: the most memory "
        "beyond weights and budget, in per cent of them",
        table,
        f"disk: {min(disk) / 1e9:.2f} to {max(disk) / 1e9:.2f} GB/s by itself, just behind each turn",
        f"in-memory pass: {in_memory or 'does not fit this machine, so that the bound is that of reading alone'}",
        sep="\n",
    )
