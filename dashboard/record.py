"""
Reading the record's file: one snapshot at a time, read-only, through ADBC. What is kept of it is connection.py.

RecordError
  RecordMissingError     no file at that path
  RecordUnreadableError  a file, but not a record that these pages understand
    RecordNewerError     a record of a later version
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias
from urllib.parse import quote

import adbc_driver_sqlite.dbapi as sqlite
import pyarrow as pa

from dashboard.contract import REVISION, VIEWS

BATCH_ROWS = 65536
_ARROW_TYPES = {"INTEGER": pa.int64(), "REAL": pa.float64(), "TEXT": pa.string()}
_BUSY_MS = 5000

Progress = Callable[[str, int], None]
"""Told the view that is being read and how many of its rows of one run were."""

Cursor: TypeAlias = sqlite.Cursor


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


class RecordNewerError(RecordUnreadableError):
    """The record was written by a later version than this one."""


@contextmanager
def snapshot(path: Path) -> Iterator[Cursor]:
    """Open the record in one read transaction, and close it: a reader that stays makes the log grow."""
    if not path.exists():
        raise RecordMissingError(path, "there is no such file")
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        with sqlite.connect(uri, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(BATCH_ROWS)})
            cursor.execute(f"pragma busy_timeout = {_BUSY_MS}")
            cursor.fetchall()
            cursor.execute("begin")
            _refuse_newer(cursor, path)
            yield cursor
            cursor.execute("rollback")
    except sqlite.Error as error:
        raise RecordUnreadableError(path, str(error).splitlines()[0]) from error


def _refuse_newer(record: Cursor, path: Path) -> None:
    record.execute("select version_num from alembic_version")
    for (revision,) in record.fetchall():
        if revision > REVISION:
            raise RecordNewerError(path, f"it is of revision {revision}, and this dashboard knows {REVISION} at most")


def definitions(record: Cursor) -> dict[str, str]:
    """Return the SQL that made each view."""
    record.execute("select name, sql from sqlite_master where type = 'view'")
    return dict(record.fetchall())


def read(
    record: Cursor,
    view: str,
    where: str = "",
    parameters: tuple[object, ...] = (),
    columns: Collection[str] | None = None,
) -> pa.RecordBatchReader:
    """Read the rows of a view, all columns or some, batch by batch."""
    types = VIEWS[view].columns
    # The cast settles the type of a column that the view computes: ADBC infers types from the first batch.
    fields = ", ".join(f'cast("{column}" as {types[column]}) "{column}"' for column in columns or types)
    record.execute(f"select {fields} from {view} {where}", parameters or None)
    return record.fetch_record_batch()


def read_table(record: Cursor, view: str, where: str = "", parameters: tuple[object, ...] = ()) -> pa.Table:
    """Read the rows of a view; the columns have their types also where there is no row."""
    schema = pa.schema([(column, _ARROW_TYPES[kind]) for column, kind in VIEWS[view].columns.items()])
    return read(record, view, where, parameters).read_all().cast(schema)


def count(record: Cursor, view: str, run_id: int) -> int:
    """Count the rows of one run."""
    record.execute(f"select count(*) from {view} where run_id = ?", (run_id,))
    ((rows,),) = record.fetchall()
    return int(rows)
