"""The whole record as Parquet, for tools that read no SQLite. The raw route trace is Parquet already: trace.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection, Engine

from observer.db import tables
from observer.db.schema import read_views
from observer.db.session import reading
from observer.errors import ExportError

BATCH_ROWS = 100_000
ARROW = {"INTEGER": pa.int64(), "REAL": pa.float64(), "TEXT": pa.string()}


def export(engine: Engine, folder: Path) -> dict[str, int]:
    """Write each view to FOLDER/view/run_id=N/rows.parquet, all from one moment; return the rows of each view.

    The folders are those of Hive partitions: readers find run_id in the path, so it is no column of the files.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ExportError(folder, "is not empty; give a folder that does not exist yet")
    counts: dict[str, int] = {}
    with reading(engine).begin() as connection:
        runs = list(connection.exec_driver_sql("SELECT run_id FROM v_run ORDER BY run_id").scalars())
        for view in read_views(engine):
            schema = pa.schema(
                [(column.name, _type(column.name)) for column in view.columns if column.name != "run_id"]
            )
            counts[view.name] = sum(_write(connection, view.name, run_id, schema, folder) for run_id in runs)
    return counts


def _write(connection: Connection, view: str, run_id: int, schema: Any, folder: Path) -> int:
    """Write one view of one run, if it has rows."""
    path = folder / view / f"run_id={run_id}" / "rows.parquet"
    rows, writer = 0, None
    try:
        for batch in _batches(connection, view, run_id, schema.names):
            if writer is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(path, schema, compression="zstd")
            columns = [
                pa.array(values, field.type) for values, field in zip(zip(*batch, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            rows += len(batch)
    except OSError as error:
        raise ExportError(path, f"cannot be written ({error.strerror or error}); make room or choose another") from None
    finally:
        if writer is not None:
            writer.close()
    return rows


def _batches(connection: Connection, view: str, run_id: int, names: list[str]) -> Iterator[list[tuple[Any, ...]]]:
    columns = ", ".join(names)
    result = connection.exec_driver_sql(f"SELECT {columns} FROM {view} WHERE run_id = ?", (run_id,))
    while batch := result.fetchmany(BATCH_ROWS):
        yield [tuple(row) for row in batch]


def _type(column: str) -> Any:
    """Of a view's column: that of the table column of the same name; what a view computes is a mean."""
    kinds = {str(c.type) for table in tables.metadata.tables.values() for c in table.columns if c.name == column}
    return ARROW[kinds.pop()] if kinds else pa.float64()
