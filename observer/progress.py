"""How far a job is, on stderr: a bar where that is a terminal, else a plain line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from observer.totals import Totals

PLAIN_EVERY_S = 5.0


class JobProgress:
    """A context manager; `begin` a phase of the job, then `advance` after each batch."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = Console(stderr=True) if console is None else console
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[facts]}"), console=self._console)
        self._task = TaskID(0)
        self._phase, self._done, self._total = "", 0, 0
        self._began_s = self._told_s = time.monotonic()
        self._tokens_before = 0

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Print one line beside the bar."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def begin(self, phase: str, total: int, totals: Totals) -> None:
        """Start a phase of so many texts."""
        self._phase, self._done, self._total = phase, 0, total
        self._began_s = self._told_s = time.monotonic()
        self._tokens_before = totals.tokens
        if self._bar is not None:
            self._task = self._bar.add_task(phase, total=total, facts="")

    def advance(self, texts: int, totals: Totals, drops: int) -> None:
        """Tell that so many more texts are done."""
        self._done += texts
        now_s = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, advance=texts, facts=self._facts(now_s, totals, drops))
        elif now_s - self._told_s >= PLAIN_EVERY_S or self._done >= self._total:
            self._told_s = now_s
            left_s = (now_s - self._began_s) / max(self._done, 1) * (self._total - self._done)
            eta = f"ETA {timedelta(seconds=round(left_s))}"
            self.say(f"{self._phase} {self._done}/{self._total} texts, {eta}, {self._facts(now_s, totals, drops)}")

    def count(self, phase: str) -> Callable[[int, int], None]:
        """Return a function of (done, total) that shows a count of something else than texts."""
        began_s = time.monotonic()

        def tell(done: int, total: int) -> None:
            now_s = time.monotonic()
            if self._bar is not None:
                if done == 1:
                    self._task = self._bar.add_task(phase, total=total, facts="")
                self._bar.update(self._task, completed=done)
            elif now_s - self._told_s >= PLAIN_EVERY_S or done == total:
                self._told_s = now_s
                left_s = (now_s - began_s) / done * (total - done)
                self.say(f"{phase} {done}/{total}, ETA {timedelta(seconds=round(left_s))}")

        return tell

    def _facts(self, now_s: float, totals: Totals, drops: int) -> str:
        rate = (totals.tokens - self._tokens_before) / max(now_s - self._began_s, 1e-9)
        accesses = totals.hits + totals.misses
        hit_rate = f"{totals.hits / accesses:.1%}" if accesses else "-"
        return f"{rate:,.0f} tokens/s, hit rate {hit_rate}, {drops:,} events dropped"
