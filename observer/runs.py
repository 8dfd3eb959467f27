"""The runs of a record: finding, locking, closing, deleting and comparing them. What is in a run is report.py."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine, RowMapping

from observer.db import tables
from observer.db.session import reading
from observer.errors import DatabaseError, RunIsLive, RunNotFound
from observer.settings import differences
from observer.trace import trace_folder
from segmoe.events import ExpertKey

KILLED = "the job ended without closing the run"


def list_runs(engine: Engine) -> list[RowMapping]:
    """Return the rows of v_run, first run first."""
    with reading(engine).begin() as connection:
        return list(connection.exec_driver_sql("SELECT * FROM v_run ORDER BY run_id").mappings())


def find_run(engine: Engine, name: str | None) -> RowMapping:
    """Return the named run, or the last one; raise RunNotFound."""
    runs = list_runs(engine)
    chosen = [run for run in runs if name is None or run["name"] == name]
    if not chosen:
        raise RunNotFound(name or "", [run["name"] for run in runs])
    return chosen[-1]


def read_trust(engine: Engine, name: str) -> dict[ExpertKey, float]:
    """Return the trust of every expert, all contexts together, as the named run left it."""
    run_id = find_run(engine, name)["run_id"]
    with reading(engine).begin() as connection:
        rows = connection.exec_driver_sql(
            "SELECT component, layer, expert, trust FROM v_expert_trust WHERE run_id = ? AND context = '*'", (run_id,)
        )
        return {ExpertKey(*tuple(row)[:3]): float(row.trust) for row in rows}


def lock_file(db: Path) -> Path:
    """Where jobs lock their runs; a file beside the record, of no content."""
    return db.with_name(f"{db.name}-jobs")


@contextmanager
def locked(db: Path, run_id: int, name: str) -> Iterator[None]:
    """Hold the run, or raise RunIsLive if another process does; the kernel lets go of it when a process dies."""
    path = lock_file(db)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise DatabaseError(path, f"cannot be opened ({error.strerror}); check the folder's permissions") from None
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, run_id)  # one byte a run
        except OSError:
            raise RunIsLive(name) from None
        yield
    finally:
        os.close(descriptor)


def is_live(db: Path, run_id: int) -> bool:
    """Whether a process holds the run now."""
    if not lock_file(db).exists():
        return False
    try:
        with locked(db, run_id, ""):
            return False
    except RunIsLive:
        return True


def recover(engine: Engine, name: str) -> bool:
    """Close a run whose job was killed; return False if it was closed already, raise RunIsLive if it goes on."""
    run, db = find_run(engine, name), _path(engine)
    with locked(db, run["run_id"], name), engine.begin() as connection:
        closed = connection.exec_driver_sql(
            "UPDATE run SET status = 'error', error = ?, finished_at = heartbeat_at "
            "WHERE run_id = ? AND status = 'started'",
            (KILLED, run["run_id"]),
        )
        return bool(closed.rowcount)


def delete(engine: Engine, name: str) -> None:
    """Delete a run with all its rows and its trace; raise RunIsLive if it goes on."""
    run, db = find_run(engine, name), _path(engine)
    with locked(db, run["run_id"], name):
        with engine.begin() as connection:
            for table in reversed(tables.metadata.sorted_tables):
                connection.exec_driver_sql(f"DELETE FROM {table.name} WHERE run_id = ?", (run["run_id"],))
        shutil.rmtree(trace_folder(db, run["run_id"]), ignore_errors=True)


class Change(NamedTuple):
    """What an expert's trust is in two runs."""

    component: str
    layer: int
    expert: int
    before: float
    after: float
    apart: int  # 1 if the 90% intervals do not overlap, else 0


class Comparison(NamedTuple):
    """Two runs side by side."""

    runs: tuple[RowMapping, RowMapping]
    settings: list[str]  # decisive settings that differ, in sentences
    experts: int  # that both have
    changes: list[Change]  # of context *, largest first


def compare(engine: Engine, first: str, second: str) -> Comparison:
    """Set two runs side by side: settings, figures, and trust of the experts that both have."""
    a, b = find_run(engine, first), find_run(engine, second)
    settings = differences(json.loads(a["config"]), json.loads(b["config"]))
    if a["checkpoint_digest"] != b["checkpoint_digest"]:
        settings.insert(0, f"the checkpoint was {a['checkpoint_digest'][:12]} and is {b['checkpoint_digest'][:12]} now")
    with reading(engine).begin() as connection:
        rows = connection.exec_driver_sql(
            "SELECT a.component, a.layer, a.expert, a.trust, b.trust, "
            "a.trust_high < b.trust_low OR b.trust_high < a.trust_low "
            "FROM v_expert_trust a JOIN v_expert_trust b USING (component, layer, expert, context) "
            "WHERE a.run_id = ? AND b.run_id = ? AND context = '*' "
            "ORDER BY ABS(a.trust - b.trust) DESC, a.component, a.layer, a.expert",
            (a["run_id"], b["run_id"]),
        ).fetchall()
    return Comparison((a, b), settings, len(rows), [Change(*tuple(row)) for row in rows])


def _path(engine: Engine) -> Path:
    return Path(engine.url.database or "")
