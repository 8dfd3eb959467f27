"""An in-memory DuckDB mirror of the record, kept up to date. Reading the file is record.py, the questions queries/."""

import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from dashboard.contract import VIEWS
from dashboard.record import Cursor, Progress, count, definitions, read, read_table, snapshot

_DUCKDB_TYPES = {"INTEGER": "BIGINT", "REAL": "DOUBLE", "TEXT": "VARCHAR"}
_INSERT_BATCHES = 16  # between two reports of progress

LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "lock_configuration": "true",
}
"""DuckDB reads and writes no file, sees no variable of Python, and none of this can be changed by a query."""


class Mirror:
    """A copy of the record's views, or of those that were wanted so far; the others are empty.

    After `sync` every view shows the same moment of the record. A run whose row in `v_run` is as before is taken to
    be unchanged; of a changed run, views that only grow are read from their high-water mark on and the others anew.
    """

    def __init__(self, path: Path, views: Collection[str] = tuple(VIEWS)) -> None:
        self.path = path
        self._wanted = {name: list(VIEWS[name].columns) for name in ("v_run", *views)}  # columns of views
        self._copied: dict[str, list[str]] = {}
        self._apart: dict[str, pa.Table] = {}  # as they were last read
        self.version = 0  # grows with each sync that changed something
        self.definitions: dict[str, str] = {}  # of the record's views, in the record's own words
        self._duckdb = duckdb.connect(":memory:", config=LOCKED)
        self._syncing = threading.Lock()
        for name, view in VIEWS.items():
            _create(self._duckdb, name, view.columns)

    def want(self, views: Mapping[str, Collection[str] | None]) -> None:
        """Copy these columns of these views too, from the next sync on; None is all columns.

        A view that is copied has only the columns that were wanted and those that a sync needs.
        """
        for name, columns in views.items():
            keys = {"run_id", VIEWS[name].grows_by, *self._wanted.get(name, ())}
            self._wanted[name] = [
                column for column in VIEWS[name].columns if columns is None or column in columns or column in keys
            ]

    def _in_order(self) -> list[str]:
        return [name for name in VIEWS if name in self._wanted]

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Open a connection to the mirror, to be closed by the caller; any thread may."""
        return self._duckdb.cursor()

    def table(
        self, sql: str, parameters: Mapping[str, object] | None = None, given: Mapping[str, pa.Table] | None = None
    ) -> pa.Table:
        """Answer one query, with `$name` parameters, from the mirror; any thread may ask.

        Rows that are `given` for a view stand for the view in this query.
        """
        with self._duckdb.cursor() as cursor:
            for view, rows in (given or {}).items():
                cursor.register(view, rows)  # of this cursor alone, and found before the mirror's own
            return cursor.sql(sql, params=dict(parameters) if parameters else None).to_arrow_table()

    def sync(self, progress: Progress = lambda view, rows: None) -> bool:
        """Copy what is new in the record; say whether anything was."""
        with self._syncing, snapshot(self.path) as record:
            if not self.definitions:
                self.definitions = definitions(record)
            runs = {row["run_id"]: row for row in read(record, "v_run").read_all().to_pylist()}
            held = {row["run_id"]: row for row in self.table("from v_run").to_pylist()}
            # An id that now names another run (the file was replaced) keeps nothing of the old one.
            gone = [key for key, row in held.items() if key not in runs or _identity(row) != _identity(runs[key])]
            changed = [key for key, row in runs.items() if held.get(key) != row]
            apart = {
                name: rows
                for name in self._in_order()
                if VIEWS[name].is_apart and (rows := read_table(record, name)) != self._apart.get(name)
            }
            wanted = self._in_order()
            columns = {name: list(self._wanted[name]) for name in wanted}
            missing = [name for name in wanted if self._copied.get(name) != columns[name] and not VIEWS[name].is_apart]
            if not gone and not changed and not apart and not missing:
                return False
            with self._transaction() as mirror:
                for name in missing:
                    if columns[name] != self._copied.get(name, list(VIEWS[name].columns)):
                        _create(mirror, name, columns[name])
                for run_id in gone:
                    _forget(mirror, run_id, VIEWS)
                for run_id in changed:
                    _forget(mirror, run_id, [name for name in wanted if VIEWS[name].grows_by is None])
                for run_id in runs:
                    for name in wanted if run_id in changed else missing:
                        if not VIEWS[name].is_apart and (name != "v_run" or run_id in changed):
                            _copy(record, mirror, name, columns[name], run_id, progress)
                for name, rows in apart.items():
                    mirror.execute(f"delete from {name}").fetchall()
                    _insert(mirror, name, rows.to_reader(), progress)
            self._copied = columns
            self._apart |= apart
            self.version += 1
            return True

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Let readers see all of a sync or nothing of it."""
        with self._duckdb.cursor() as cursor:
            cursor.begin()
            try:
                yield cursor
            except BaseException:
                cursor.rollback()
                raise
            cursor.commit()


def _identity(run: Mapping[str, Any]) -> tuple[object, object]:
    return run["name"], run["started_at"]


def _forget(mirror: duckdb.DuckDBPyConnection, run_id: int, views: Iterable[str]) -> None:
    for view in views:
        mirror.execute(f"delete from {view} where run_id = $run_id", {"run_id": run_id}).fetchall()


def _create(mirror: duckdb.DuckDBPyConnection, view: str, columns: Iterable[str]) -> None:
    """Make the table that stands for a view, without rows."""
    types = VIEWS[view].columns
    fields = ", ".join(f'"{column}" {_DUCKDB_TYPES[types[column]]}' for column in columns)
    mirror.execute(f"create or replace table {view} ({fields})").fetchall()


def _copy(
    record: Cursor,
    mirror: duckdb.DuckDBPyConnection,
    view: str,
    columns: Collection[str],
    run_id: int,
    progress: Progress,
) -> None:
    """Bring one view of one run up to date; of a view that grows, by what lies from its high-water mark on."""

    def read_rows(where: str, parameters: tuple[object, ...]) -> pa.RecordBatchReader:
        return read(record, view, where, parameters, columns)

    if mark := VIEWS[view].grows_by:
        ((highest,),) = mirror.execute(f"select max({mark}) from {view} where run_id = ?", (run_id,)).fetchall()
        if highest is not None:
            mirror.execute(f"delete from {view} where run_id = ? and {mark} = ?", (run_id, highest)).fetchall()
            _insert(mirror, view, read_rows(f"where run_id = ? and {mark} >= ?", (run_id, highest)), progress)
            if count(record, view, run_id) == _count(mirror, view, run_id):
                return
            _forget(mirror, run_id, [view])  # rows came in below the mark, or went
    _insert(mirror, view, read_rows("where run_id = ?", (run_id,)), progress)


def _insert(mirror: duckdb.DuckDBPyConnection, view: str, rows: pa.RecordBatchReader, progress: Progress) -> None:
    copied = 0
    with ThreadPoolExecutor(1) as thread:  # reads on while rows are inserted
        ahead = thread.submit(_take, rows)
        while held := ahead.result():
            ahead = thread.submit(_take, rows)
            copied += _insert_batches(mirror, view, held)
            progress(view, copied)


def _take(rows: pa.RecordBatchReader) -> list[pa.RecordBatch]:
    return list(islice(rows, _INSERT_BATCHES))


def _insert_batches(mirror: duckdb.DuckDBPyConnection, view: str, batches: list[pa.RecordBatch]) -> int:
    rows = pa.Table.from_batches(batches)
    mirror.register("batches", rows)
    mirror.execute(f"insert into {view} select * from batches").fetchall()
    mirror.unregister("batches")
    return int(rows.num_rows)


def _count(mirror: duckdb.DuckDBPyConnection, view: str, run_id: int) -> int:
    ((rows,),) = mirror.execute(f"select count(*) from {view} where run_id = ?", (run_id,)).fetchall()
    return int(rows)
