"""Kills a job and fills its disk, over and over; what it leaves must be whole, and what it ends with must be the same.

    python -m tests.benchmarks.crash [--kills 100] [--full-disks 20] [--seed 0]

A job on the embedded model is killed with SIGKILL until it is done: at random moments, and on purpose in a commit, just
after one, in a merge of windows, in a migration, and before and after the rename of a trace file. After each kill the
record must pass SQLite's integrity check and hold each finished text once. At the end every table must equal that of an
uninterrupted job in all but times. Then the same with a disk that has no room left at some moment.

The jobs are forks of one process that has imported everything, so that a start takes a fraction of a second.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import click

POINTS = (
    "random moment",
    "in a commit",
    "after a commit",
    "in a merge",
    "in a migration",
    "before a rename",
    "after a rename",
)
SETTINGS = dict(limit=24, batch=2, max_tokens=48, generate=3, generate_texts=3, window_tokens=120, windows=5)
SETTINGS |= dict(trace=True, trace_file_rows=400, verify=False, run="it")
NOT_COMPARED = {"attempts", "config", "config_hash", "started_at", "heartbeat_at", "finished_at"}
NOT_COMPARED |= {"queue_events", "queue_most"}


def ask(db: Path, sql: str) -> list[Any]:
    """Answer with Python's own SQLite."""
    with closing(sqlite3.connect(db, timeout=30)) as connection:
        return connection.execute(sql).fetchall()


def everything(db: Path) -> dict[str, Any]:
    """All that a record says but times; of the state to go on from, that it is there."""
    found: dict[str, Any] = {}
    for (table,) in ask(db, "SELECT name FROM sqlite_master WHERE type = 'table'"):
        names = [row[1] for row in ask(db, f"PRAGMA table_info({table})")]
        kept = [name for name in names if not name.endswith("_ns") and name not in NOT_COMPARED | {"content"}]
        found[table] = ask(db, f"SELECT {', '.join(kept)} FROM {table}")
    return found


def trace_names(db: Path) -> set[str]:
    """Files in the trace folder."""
    folder = db.with_name(f"{db.stem}-trace") / "1"
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def job(db: Path, point: str, count: int, rng: random.Random) -> None:
    """Do the job in this process, which dies at the point of that name when it comes there for the count-th time."""
    from observer import loop
    from observer.job import run_job
    from observer.progress import JobProgress
    from observer.settings import JobConfig
    from segmoe.embedded import CORPUS, MODEL

    loop.CHECKPOINT_S = rng.choice((0.0, 0.05, 60.0))
    arm(point, count)
    run_job(JobConfig(model=MODEL, corpus=CORPUS, db=db, **SETTINGS), JobProgress())


def arm(point: str, count: int) -> None:
    """Make the process kill itself at a point."""
    from alembic.operations import Operations
    from sqlalchemy import Connection, event
    from sqlalchemy.engine import Engine

    from observer.db import windows

    left = count

    def die() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if point == "in a commit":
        event.listen(Engine, "commit", lambda connection: die())
    elif point == "after a commit":
        commit = Connection._commit_impl

        def committed(self: Any) -> None:
            commit(self)
            die()

        Connection._commit_impl = committed
    elif point == "in a merge":
        choose = windows.choose

        def chosen(held: Any) -> Any:
            die()
            return choose(held)

        windows.choose = chosen
    elif point == "in a migration":
        create = Operations.create_table

        def created(*args: Any, **kwargs: Any) -> Any:
            die()
            return create(*args, **kwargs)

        Operations.create_table = created
    elif point in ("before a rename", "after a rename"):
        rename = Path.rename

        def renamed(self: Path, target: Any) -> Path:
            if point == "before a rename":
                die()
            result = rename(self, target)
            if point == "after a rename":
                die()
            return result

        Path.rename = renamed


class Died(NamedTuple):
    """How a fork ended."""

    killed: bool
    code: int
    said: str


def fork(work: Callable[[], None], *, kill_after_s: float | None = None) -> Died:
    """Do the work in a fork of this process; perhaps kill it after a while."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(said.fileno(), 2)
                os.dup2(said.fileno(), 1)
                work()
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        text = said.read()
    killed = os.WIFSIGNALED(status)
    return Died(killed, -1 if killed else os.WEXITSTATUS(status), text)


def check(db: Path) -> None:
    """What must hold after any death."""
    if not db.exists() or db.stat().st_size == 0:
        return
    assert ask(db, "PRAGMA integrity_check") == [("ok",)]
    assert ask(db, "PRAGMA foreign_key_check") == []
    if not ask(db, "SELECT 1 FROM sqlite_master WHERE name = 'v_run'"):
        assert ask(db, "SELECT COUNT(*) FROM sqlite_master") == [(0,)], "half a migration"
        return
    for sequences, ordinals, last in ask(
        db, "SELECT COUNT(*), COUNT(DISTINCT ordinal), COALESCE(MAX(ordinal) + 1, 0) FROM v_sequence"
    ):
        assert sequences == ordinals == last, "a text is missing or there twice"
    run = ask(db, "SELECT sequences, tokens FROM v_run")
    if run:
        assert run[0][0] == ask(db, "SELECT COUNT(*) FROM v_sequence")[0][0]
        assert run[0][1] >= ask(db, "SELECT COALESCE(SUM(tokens), 0) FROM v_window")[0][0]
    catalogued = {name for (name,) in ask(db, "SELECT file FROM v_trace")}
    assert catalogued <= trace_names(db), "a catalogued file is missing"


def until_done(db: Path, rng: random.Random, deaths: Counter[str], kills: int, took_s: float) -> None:
    """Start the job and kill it; from the time on that there were enough kills, let it end."""
    while True:
        point = rng.choice(POINTS)
        if sum(deaths.values()) >= kills:
            died = fork(lambda: job(db, "", 0, rng))
            assert (died.killed, died.code) == (False, 0), died.said
            check(db)
            return
        count = rng.randint(1, 6)
        after = rng.uniform(0, took_s) if point == "random moment" else None
        died = fork(lambda point=point, count=count: job(db, point, count, rng), kill_after_s=after)
        check(db)
        if died.killed:
            deaths[point] += 1
        else:
            assert died.code == 0, died.said
            return


def compare(db: Path, wanted: dict[str, Any], names: set[str]) -> None:
    """Raise if a table, or the trace folder, is not that of an uninterrupted job."""
    found = everything(db)
    for table, rows in wanted.items():
        assert found[table] == rows, f"{table} is another one"
    assert trace_names(db) == names


def mounted(folder: Path, size: int) -> bool:
    """Put a file system of so many bytes there, if this process may."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def fill(folder: Path, leave: int) -> Path:
    """Fill the file system but for so many bytes."""
    filler = folder / "filler"
    size = shutil.disk_usage(folder).free - leave
    if size > 0:
        with filler.open("wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return filler


DISK_BYTES = 24 * 2**20
SENTENCES = ("the disk is full", "No space left on device", "cannot be written", "disk I/O error", "File too large")


def _full(db: Path, rng: random.Random, least: int) -> str:
    filler = fill(db.parent, rng.randint(0, least))
    died = fork(lambda: job(db, "", 0, rng))
    filler.unlink(missing_ok=True)
    return _after(db, died, rng)


def _limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _after(db: Path, died: Died, rng: random.Random) -> str:
    """Check what the job left and said, then let it go on."""
    assert not died.killed, "the job died of a full disk"
    check(db)
    sentence = ""
    if died.code:
        sentence = died.said.strip().splitlines()[-1]
        assert any(words in sentence for words in SENTENCES), died.said
        again = fork(lambda: job(db, "", 0, rng))
        assert again.code == 0, again.said
    check(db)
    return sentence


@click.command()
@click.option("--kills", default=100, show_default=True, help="Deaths by SIGKILL.")
@click.option("--full-disks", default=20, show_default=True, help="Jobs on a disk without room.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def main(kills: int, full_disks: int, seed: int) -> None:
    """Kill, fill, compare; print how often."""
    run(kills, full_disks, seed, click.echo)


def run(kills: int, full_disks: int, seed: int, tell: Callable[[str], None]) -> None:
    """The same, for the tests."""
    import segmoe.runtime
    import segmoe.verdict  # noqa: F401 - what a fork has need not be imported again

    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole" / "r.db"
        whole.parent.mkdir()
        began = time.monotonic()
        died = fork(lambda: job(whole, "", 0, rng))
        took_s = time.monotonic() - began
        assert died.code == 0, died.said
        wanted, names = everything(whole), trace_names(whole)
        size = sum(path.stat().st_size for path in whole.parent.rglob("*") if path.is_file())
        tell(f"an uninterrupted job takes {took_s:.1f} s and {size / 1e6:.1f} MB")
        deaths: Counter[str] = Counter()
        ended = 0
        while sum(deaths.values()) < kills:
            db = Path(folder) / f"killed-{ended}" / "r.db"
            db.parent.mkdir()
            until_done(db, rng, deaths, kills, took_s)
            compare(db, wanted, names)
            shutil.rmtree(db.parent)
            ended += 1
            print(f"{sum(deaths.values())} of {kills} kills, {ended} jobs", file=sys.stderr, flush=True)
        died_in = f"{sum(deaths.values())} kills in {ended} jobs"
        tell(f"{died_in}, each of which ended as the uninterrupted one: {dict(deaths)}")
        sentences: Counter[str] = Counter()
        tries = 0
        while sum(sentences.values()) < full_disks:
            place = Path(folder) / f"full-{tries}"
            sentence = full_disk_compared(place, rng, size, wanted, names)
            tries += 1
            if sentence:
                sentences[sentence.split("; ")[0].split(": ")[-1]] += 1
        tell(f"{sum(sentences.values())} full disks in {tries} jobs, each of which then went on to the same end: "
             f"{dict(sentences)}")  # fmt: skip


def full_disk_compared(place: Path, rng: random.Random, size: int, wanted: dict[str, Any], names: set[str]) -> str:
    """One job on a full disk, and what it ends with."""
    db = place / "r.db"
    is_mounted = mounted(place, DISK_BYTES)
    try:
        if is_mounted:
            sentence = _full(db, rng, size)
        else:
            limit = rng.randint(size // 8, size)
            sentence = _after(db, fork(lambda: (_limit_files(limit), job(db, "", 0, rng))[1]), rng)
        compare(db, wanted, names)
    finally:
        if is_mounted:
            subprocess.run(["umount", str(place)], check=False)
    return sentence


if __name__ == "__main__":
    main()
