"""How far a job is: on stderr a bar where that is a terminal, else a line every few seconds; JSON for machines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TextIO

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
        self._phase, self._done, self._total, self._done_before = "", 0, 0, 0
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

    def launch(self, run: str, config: Mapping[str, Any], *, goes_on: bool) -> None:
        """Tell that the job starts, or goes on."""
        if goes_on:
            self.say(f"going on with run {run}")

    def begin(self, phase: str, total: int, totals: Totals, done: int = 0) -> None:
        """Start a phase of so many texts (0: without end), of which some were done by an earlier start."""
        self._phase, self._done, self._total = phase, done, total
        self._done_before = done
        self._began_s = self._told_s = time.monotonic()
        self._tokens_before = totals.tokens
        if self._bar is not None:
            self._task = self._bar.add_task(phase, total=total or None, completed=done, facts="")

    def advance(self, texts: int, totals: Totals, drops: int) -> None:
        """Tell that so many more texts are done."""
        self._done += texts
        now_s = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, advance=texts, facts=self._facts(now_s, totals, drops))
        elif self._is_due(now_s):
            facts = self._facts(now_s, totals, drops)
            if self._total:
                left_s = (now_s - self._began_s) / (self._done - self._done_before) * (self._total - self._done)
                facts = f"ETA {timedelta(seconds=round(left_s))}, {facts}"
            of = f"/{self._total}" if self._total else ""
            self.say(f"{self._phase} {self._done}{of} texts, {facts}")

    def _is_due(self, now_s: float) -> bool:
        """Whether to tell something now, and if so, take note of it."""
        if now_s - self._told_s < PLAIN_EVERY_S and (not self._total or self._done < self._total):
            return False
        self._told_s = now_s
        return True

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


class JsonProgress(JobProgress):
    """One JSON object a line: `launch`, `note`, `progress`; the command adds `done`."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(Console(stderr=True, force_terminal=False))
        self._out = out

    def tell(self, event: str, **facts: Any) -> None:
        """Write a line."""
        self._out.write(json.dumps({"event": event, **facts}) + "\n")
        self._out.flush()

    def launch(self, run: str, config: Mapping[str, Any], *, goes_on: bool) -> None:
        """Tell what is to be done."""
        self.tell("launch", run=run, goes_on=goes_on, config=dict(config))

    def say(self, line: str) -> None:
        """Tell what a person would read."""
        self.tell("note", text=line)

    def advance(self, texts: int, totals: Totals, drops: int) -> None:
        """Tell that so many more texts are done, every few seconds."""
        self._done += texts
        now_s = time.monotonic()
        if self._is_due(now_s):
            self.tell(
                "progress",
                phase=self._phase,
                texts=self._done,
                texts_planned=self._total,
                tokens=totals.tokens,
                tokens_per_s=round((totals.tokens - self._tokens_before) / max(now_s - self._began_s, 1e-9), 1),
                hits=totals.hits,
                misses=totals.misses,
                bytes_read=totals.bytes_read,
                events_dropped=drops,
            )
