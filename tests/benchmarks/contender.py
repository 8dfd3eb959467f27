"""The parent's end of a worker: start it, under a cap if there is one, ask it for passes, watch its memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.memory import Cap, Peak

ROOT = Path(__file__).parents[2]


class DiedError(Exception):
    """The worker is gone; the words say what of."""


class Passes(NamedTuple):
    """What some passes took."""

    seconds: list[float]
    missed: list[int]  # experts that were not in memory
    prefetched: int  # of all missed, before their layer asked
    wasted: int  # read early and not asked for


class Contender:
    """One way of running a checkpoint, in a process of its own with its peaks of memory since it began."""

    def __init__(self, threads: int, cap: Cap | None = None) -> None:
        cap = cap or Cap()
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
        number = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [*cap.prefix, sys.executable, "-m", "tests.benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | quiet | number,
        )
        cap.put(self._process.pid)
        self.peak_bytes = self.mapped_bytes = self.both_bytes = self.before_bytes = 0
        self.open_s = 0.0

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *error: object) -> None:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        if error[0] is not None:
            process.kill()  # it may be in a long pass
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        process.wait()
        self._errors.close()

    def open(self, path: Path, **settings: Any) -> None:
        """Load a checkpoint; `settings` are those of worker.open_model."""
        opened = self._ask(True, do="open", path=str(path), **settings)
        self.open_s, self.before_bytes = opened["seconds"], opened["before"]

    def implement(self, name: str) -> None:
        """Have a stock model compute its experts in another of the library's ways."""
        self._ask(False, do="implement", name=name)

    def run(self, passes: int, tokens: int, seed: int, watch: bool = False, **how: Any) -> Passes:
        """Passes of given random ids with a KV cache; `how` as in worker.py. To `watch` memory costs a little time."""
        return Passes(**self._ask(watch, do="run", passes=passes, tokens=tokens, seed=seed, **how))

    def pack(self, passes: int, tokens: int) -> None:
        """Passes until segmoe has packed what it packs of the experts in memory; `passes` with one KV cache each."""
        self._ask(True, do="pack", passes=passes, tokens=tokens)

    def beside(self, weights_bytes: int) -> int:
        """What its memory was at most, but for so many bytes of weights and what it was before it loaded them."""
        return self.both_bytes - self.before_bytes - weights_bytes

    def bookkeep(self, passes: int, seed: int) -> list[float]:
        """The share of each decode step that segmoe's cache and its events take."""
        took = self._ask(False, do="bookkeep", passes=passes, seed=seed)
        return [own / whole for own, whole in zip(took["own"], took["seconds"], strict=True)]

    def _ask(self, watch: bool, **command: Any) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        peak = Peak(process.pid)
        try:
            process.stdin.write(json.dumps(command) + "\n")
            process.stdin.flush()
            if watch:
                with peak:
                    line = process.stdout.readline()
                self.peak_bytes = max(self.peak_bytes, peak.nbytes)
                self.mapped_bytes = max(self.mapped_bytes, peak.mapped_bytes)
                self.both_bytes = max(self.both_bytes, peak.both_bytes)
            else:
                line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = process.wait()
            if status == -9 or status == 137:
                raise DiedError("killed for memory")
            self._errors.seek(0)
            last = self._errors.read().strip().split("\n")[-1]
            raise DiedError(f"failed: {last}")
        answer: dict[str, Any] = json.loads(line)
        return answer
