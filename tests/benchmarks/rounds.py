"""What every part of the residency benchmark has: the checkpoint, how long to measure, and a row of its table."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tests.benchmarks.contender import Contender

WITHOUT_PREFILL = ("batched_mm",)
"""Copies the weights of each pick: 256 tokens x 8 picks of 9 MB are 19 GB, and took minutes where they fit."""

CAPS = ("1.8GB", "1.9GB", "2.6GB")  # 1.9 is half of the 3-layer model


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The checkpoint and how long to measure."""

    path: Path
    threads: int = 2
    rounds: int = 5
    limit_s: float = 30.0  # for the rounds of one task; then no further round begins
    settling: int = 12  # turns before anything is timed
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
        """Decode until the budget is filled and what stays is packed."""
        contender.run(seed=0, passes=self.settling * self.steps, tokens=1, watch=True)

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
