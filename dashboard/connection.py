"""
An in-memory DuckDB mirror of the record, kept up to date through ADBC. The questions asked of it are in queries.py.

RecordError
  RecordMissingError     no file at that path
  RecordUnreadableError  a file, but not a record that these pages understand
"""

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import adbc_driver_sqlite.dbapi as sqlite
import duckdb
import pyarrow as pa

from dashboard.contract import VIEWS

_DUCKDB_TYPES = {"INTEGER": "BIGINT", "REAL": "DOUBLE", "TEXT": "VARCHAR"}
_BATCH_ROWS = 65536
_BUSY_MS = 5000


class RecordError(Exception):
    """The record cannot be read; `path` says which, the message why."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class RecordMissingError(RecordError):
    """There is no file at `path`."""


class RecordUnreadableError(RecordError):
    """The file at `path` is no database, or a database without the views that pages read."""


class Mirror:
    """A copy of the record's views.

    After `sync` every view shows the same moment of the record. A run whose row in `v_run` is as before is taken to
    be unchanged; of a changed run, views that only grow are read above their high-water mark and the others anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._duckdb = duckdb.connect(":memory:", config={"enable_external_access": "false"})
        self._syncing = threading.Lock()
        for name, view in VIEWS.items():
            columns = ", ".join(f'"{column}" {_DUCKDB_TYPES[kind]}' for column, kind in view.columns.items())
            self._duckdb.execute(f"create table {name} ({columns})")

    def table(self, sql: str, parameters: Mapping[str, object] | None = None) -> pa.Table:
        """Answer one query, with `$name` parameters, from the mirror; any thread may ask."""
        with self._duckdb.cursor() as cursor:
            return cursor.sql(sql, params=dict(parameters) if parameters else None).to_arrow_table()

    def sync(self) -> bool:
        """Copy what is new in the record; say whether anything was."""
        with self._syncing, _snapshot(self.path) as record:
            runs = {row["run_id"]: row for row in _read(record, "v_run").read_all().to_pylist()}
            held = {row["run_id"]: row for row in self.table("from v_run").to_pylist()}
            # An id that now names another run (the file was replaced) keeps nothing of the old one.
            gone = [key for key, row in held.items() if key not in runs or _identity(row) != _identity(runs[key])]
            changed = [key for key, row in runs.items() if held.get(key) != row]
            if not gone and not changed:
                return False
            with self._transaction() as mirror:
                for run_id in gone:
                    _forget(mirror, run_id, VIEWS)
                for run_id in changed:
                    _forget(mirror, run_id, [name for name, view in VIEWS.items() if view.grows_by is None])
                    for name in VIEWS:
                        _copy(record, mirror, name, run_id)
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


@contextmanager
def _snapshot(path: Path) -> Iterator[sqlite.Cursor]:
    """Open the record read-only in one read transaction, and close it: a reader that stays makes the log grow."""
    if not path.exists():
        raise RecordMissingError(path, "there is no such file")
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        with sqlite.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(_BATCH_ROWS)})
            cursor.execute(f"pragma busy_timeout = {_BUSY_MS}")
            cursor.fetchall()
            cursor.execute("begin")
            yield cursor
            cursor.execute("rollback")
    except sqlite.Error as error:
        raise RecordUnreadableError(path, str(error).splitlines()[0]) from error


def _identity(run: Mapping[str, Any]) -> tuple[object, object]:
    return run["name"], run["started_at"]


def _read(record: sqlite.Cursor, view: str, where: str = "", parameters: tuple[int, ...] = ()) -> pa.RecordBatchReader:
    # The cast settles the type of a column that the view computes: ADBC infers types from the first batch.
    columns = ", ".join(f'cast("{column}" as {kind}) "{column}"' for column, kind in VIEWS[view].columns.items())
    record.execute(f"select {columns} from {view} {where}", parameters or None)
    return record.fetch_record_batch()


def _forget(mirror: duckdb.DuckDBPyConnection, run_id: int, views: Iterable[str]) -> None:
    for view in views:
        mirror.execute(f"delete from {view} where run_id = $run_id", {"run_id": run_id}).fetchall()


def _copy(record: sqlite.Cursor, mirror: duckdb.DuckDBPyConnection, view: str, run_id: int) -> None:
    """Bring one view of one run up to date; of a view that grows, by what lies above its high-water mark."""
    if mark := VIEWS[view].grows_by:
        ((highest,),) = mirror.execute(f"select max({mark}) from {view} where run_id = ?", (run_id,)).fetchall()
        if highest is not None:
            _insert(mirror, view, _read(record, view, f"where run_id = ? and {mark} > ?", (run_id, highest)))
            if _count(record, view, run_id) == _count(mirror, view, run_id):
                return
            _forget(mirror, run_id, [view])  # rows came in below the mark
    _insert(mirror, view, _read(record, view, "where run_id = ?", (run_id,)))


def _insert(mirror: duckdb.DuckDBPyConnection, view: str, rows: pa.RecordBatchReader) -> None:
    mirror.register("batches", rows)
    mirror.execute(f"insert into {view} select * from batches").fetchall()
    mirror.unregister("batches")


def _count(database: sqlite.Cursor | duckdb.DuckDBPyConnection, view: str, run_id: int) -> int:
    database.execute(f"select count(*) from {view} where run_id = ?", (run_id,))
    ((count,),) = database.fetchall()
    return int(count)
