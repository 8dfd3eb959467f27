"""
The process that runs people's SQL, `python -m dashboard.console_worker FILE SECONDS`; console.py starts and ends it.

It has a mirror of its own, of the views that were asked for, and answers one request at a time: a line of JSON in
(`sql`, `parameters`, `is_copy`), lines of JSON out while the mirror is brought up to date, one when it is, another one
with the answer's shape or the error, then the rows as an Arrow stream. A request that only copies ends before those. A
query that cannot be interrupted takes this process with it, not the pages.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import duckdb
import pyarrow as pa

from dashboard.connection import Mirror
from dashboard.contract import EXPERT_WINDOWS
from dashboard.record import RecordError
from dashboard.statement import Permitted, RefusedError, permit

SECONDS = 5
ROWS = 10_000
BYTES = 16 << 20
MEMORY_BYTES = 6 << 30  # of address space, beside what is in use when a query starts

TOO_LARGE = "Stopped: it needs more memory than a query may have. Ask for less: filter, or aggregate first."


def too_long(seconds: float) -> str:
    """Say why a query was stopped."""
    return f"Stopped after {seconds:g} s. Ask for less: filter, or aggregate first."


def run(mirror: Mirror, sql: str, parameters: Mapping[str, object], seconds: float) -> tuple[pa.Table, bool]:
    """Run a permitted statement in a transaction that cannot write; return the first rows, and whether they are all."""
    with mirror.cursor() as cursor:
        cursor.execute("begin transaction read only")
        timer = threading.Timer(seconds, cursor.interrupt)
        timer.start()
        try:
            relation = cursor.sql(sql, params=dict(parameters) or None)
            reader = relation.to_arrow_reader(1024)
            batches, rows, size = [], 0, 0
            for batch in reader:
                batches.append(batch)
                rows, size = rows + batch.num_rows, size + batch.nbytes
                if rows > ROWS or size > BYTES:
                    break
            table = pa.Table.from_batches(batches, reader.schema)
        finally:
            timer.cancel()
    if size <= BYTES:
        return table.slice(0, ROWS), rows <= ROWS
    return table.slice(0, min(ROWS, max(1, int(rows * BYTES / size)) if rows > 1 else 0)), False


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Let the system refuse memory without end, and any byte written to any file, while a query runs."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    held = {kind: resource.getrlimit(kind) for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE)}
    memory = MEMORY_BYTES + pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory, held[resource.RLIMIT_AS][1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, held[resource.RLIMIT_FSIZE][1]))
    try:
        yield
    finally:
        for kind, limit in held.items():
            resource.setrlimit(kind, limit)


def serve(path: Path, seconds: float, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the requests end."""
    mirror = Mirror(path, ())
    for line in requests:
        request = json.loads(line)
        try:
            with mirror.cursor() as cursor:
                statement = permit(cursor, request["sql"])
            _copy(mirror, statement, answers)
            if request["is_copy"]:
                _say(answers, state="copied")
                continue
            _say(answers, state="running")
            with limited():
                table, is_all = run(mirror, statement.sql, request["parameters"], seconds)
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema) as stream:
                    stream.write_table(table)
                rows = sink.getvalue()
        except duckdb.InterruptException:
            _say(answers, state="error", error=too_long(seconds))
        except (MemoryError, duckdb.OutOfMemoryException, pa.ArrowMemoryError):
            _say(answers, state="error", error=TOO_LARGE)
        except (duckdb.Error, RefusedError, RecordError, pa.ArrowException, RuntimeError, ValueError) as error:
            _say(answers, state="error", error=str(error))
        else:
            _say(answers, state="done", bytes=rows.size, is_all=is_all)
            answers.write(rows)
            answers.flush()


def _copy(mirror: Mirror, statement: Permitted, answers: BinaryIO) -> None:
    """Copy the views that a statement names, of the one of millions of rows no more columns than it may read."""
    mirror.want({view: statement.columns if view == EXPERT_WINDOWS else None for view in statement.views})
    mirror.sync(lambda view, rows: _say(answers, state="copying", view=view, rows=rows))


def _say(answers: BinaryIO, **message: object) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pages decide when it ends: they close its input
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails instead
    os.nice(10)
    serve(Path(sys.argv[1]), float(sys.argv[2]), sys.stdin.buffer, sys.stdout.buffer)
