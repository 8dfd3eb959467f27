"""Making a record smaller: detail that is no longer needed goes, windows are merged, the file gives room back."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine

from observer.db.session import BUSY_TIMEOUT_MS
from observer.db.windows import make_room
from observer.db.writer import read_state, whole_windows
from observer.runs import find_run, locked
from observer.trace import trace_folder

DETAIL = {
    "expert-windows": "expert_window",
    "salience": "salience",
    "residency": "residency_event",
    "coactivation": "coactivation",
    "trace": "trace_file",
    "what-if": "what_if",
    "state": "run_state",
}
"""What can be dropped of a run, and its table; without `state` it cannot go on any more."""


def prune(engine: Engine, run: str, *, windows: int | None = None, drop: Collection[str] = ()) -> None:
    """Keep at most so many windows of a run, and drop what is named; raise RunIsLive if it goes on.

    Windows that were cut short stay as they are until the run goes on, which takes them back and writes them anew.
    """
    db = Path(engine.url.database or "")
    run_id = find_run(engine, run)["run_id"]
    with locked(db, run_id, run):
        with engine.begin() as connection:
            whole = whole_windows(None if "state" in drop else read_state(connection, run_id))
            if windows is not None:
                make_room(connection, run_id, windows + 1, below=whole)
            for name in drop:
                kept = "" if whole is None or name != "expert-windows" else f" AND window_index < {whole}"
                connection.exec_driver_sql(f"DELETE FROM {DETAIL[name]} WHERE run_id = ?{kept}", (run_id,))
        if "trace" in drop:
            shutil.rmtree(trace_folder(db, run_id), ignore_errors=True)


def shrink(db: Path) -> int:
    """Give room in the file that is not used back to the disk; return how many bytes. Waits for other writers."""
    before = db.stat().st_size
    with closing(sqlite3.connect(db, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)) as connection:
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return before - db.stat().st_size
