"""Free SQL: one statement in, a table or an error out, within limits. Running it is console_worker.py, a process."""

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dashboard.console_worker import SECONDS, TOO_LARGE, too_long
from dashboard.record import Progress

_GRACE_S = 1.5  # to hear of an interrupted query before its process is killed
_SYNC_S = 60  # to copy the next part of the views that a query names


class Answer(NamedTuple):
    """What came of one statement."""

    table: pa.Table | None
    is_all: bool  # False: there were more rows, or larger ones, than are shown
    error: str  # '' if none


class Console:
    """Runs statements on a record, one after another; a process that outstays its time is killed, and made anew."""

    def __init__(self, path: Path, seconds: float = SECONDS) -> None:
        self.path = path
        self.seconds = seconds
        self._one_at_a_time = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None

    def copy(self, sql: str, progress: Progress) -> None:
        """Have what one statement reads copied, which may take long; if it cannot be, running it will say why."""
        with self._one_at_a_time, contextlib.suppress(TimeoutError, EOFError, BrokenPipeError):
            self._wait(self._send(sql, {}, is_copy=True), progress)

    def run(self, sql: str, parameters: Mapping[str, object] | None = None) -> Answer:
        """Run one statement; every failure is an answer."""
        with self._one_at_a_time:
            try:
                return self._ask(sql, parameters or {})
            except TimeoutError:
                self._kill()
                return Answer(None, True, too_long(self.seconds))
            except (EOFError, BrokenPipeError):
                self._kill()
                return Answer(None, True, TOO_LARGE)

    def close(self) -> None:
        """End the process."""
        with self._one_at_a_time:
            self._kill()

    def _send(self, sql: str, parameters: Mapping[str, object], *, is_copy: bool) -> "_Source":
        worker = self._running()
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdin.write(json.dumps({"sql": sql, "parameters": parameters, "is_copy": is_copy}).encode() + b"\n")
        worker.stdin.flush()
        return _Source(worker.stdout.fileno())

    def _wait(self, source: "_Source", progress: Progress) -> dict[str, Any]:
        """Wait until the process has copied what it needs."""
        while (message := source.message(_SYNC_S))["state"] == "copying":
            progress(message["view"], message["rows"])
        return message

    def _ask(self, sql: str, parameters: Mapping[str, object]) -> Answer:
        source = self._send(sql, parameters, is_copy=False)
        message = self._wait(source, lambda view, rows: None)
        if message["state"] == "running":
            message = source.message(self.seconds + _GRACE_S)
        if message["state"] == "error":
            return Answer(None, True, message["error"])
        rows = source.exactly(message["bytes"], self.seconds + _GRACE_S)
        return Answer(pa.ipc.open_stream(rows).read_all(), message["is_all"], "")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._worker is None or self._worker.poll() is not None:
            self._kill()
            root = str(Path(__file__).parents[1])
            paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "dashboard.console_worker", str(self.path), str(self.seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": paths},
            )
        return self._worker

    def _kill(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            with contextlib.suppress(BrokenPipeError):
                self._worker.communicate()
            self._worker = None


class _Source:
    """Reads what the process says, and waits no longer than told."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._held = bytearray()

    def message(self, seconds: float) -> dict[str, Any]:
        """Return the next line of JSON."""
        parts = self._parts(seconds)
        while b"\n" not in self._held:
            self._held += next(parts)
        line, _, rest = self._held.partition(b"\n")
        self._held = bytearray(rest)
        found: dict[str, Any] = json.loads(line)
        return found

    def exactly(self, size: int, seconds: float) -> bytes:
        """Return the next so many bytes."""
        parts = self._parts(seconds)
        while len(self._held) < size:
            self._held += next(parts)
        found, self._held = bytes(self._held[:size]), self._held[size:]
        return found

    def _parts(self, seconds: float) -> Iterator[bytes]:
        deadline = time.monotonic() + seconds
        while True:
            ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(self._descriptor, 1 << 20)
            if not part:
                raise EOFError
            yield part
