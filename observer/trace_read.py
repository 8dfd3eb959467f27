"""Reads the route traces of a record and writes them as CSV for other tools. Writing traces is trace.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow.parquet as pq
from sqlalchemy import Engine

from observer.db.session import reading
from observer.errors import RunNotFound, TraceError
from observer.trace import trace_folder

BATCH_ROWS = 65_536
CSV_COLUMNS = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"
NOT_RECORDED = -1


class Trace(NamedTuple):
    """The files of one run, in their order, and what is needed to read them."""

    run: str
    files: list[Path]
    expert_bytes: dict[tuple[str, int], int]  # (component, layer) -> of one expert


def open_trace(engine: Engine, run: str | None) -> Trace:
    """Find the trace of the named run, or of the last run that has one."""
    db = Path(engine.url.database or "")
    with reading(engine).begin() as connection:
        runs = connection.exec_driver_sql(
            "SELECT run_id, name, (SELECT COUNT(*) FROM v_trace t WHERE t.run_id = r.run_id) AS files "
            "FROM v_run r ORDER BY run_id DESC"
        ).fetchall()
        chosen = next((row for row in runs if (row.name == run if run is not None else row.files)), None)
        if chosen is None and run is not None:
            raise RunNotFound(run, [row.name for row in runs])
        if chosen is None or not chosen.files:
            raise TraceError(db, f"holds no trace of {run or 'any run'}; run with --trace to make one")
        names = connection.exec_driver_sql(
            "SELECT file FROM v_trace WHERE run_id = ? ORDER BY file_index", (chosen.run_id,)
        ).scalars()
        folder = trace_folder(db, chosen.run_id)
        files = [folder / name for name in names]
        sizes = connection.exec_driver_sql(
            "SELECT component, layer, MAX(bytes) FROM v_expert WHERE run_id = ? GROUP BY component, layer",
            (chosen.run_id,),
        ).fetchall()
    for path in files:
        if not path.exists():
            raise TraceError(path, "is in the record but not on disk; keep the trace folder beside the record")
    return Trace(chosen.name, files, {(component, layer): size for component, layer, size in sizes})


def batches(trace: Trace) -> Iterator[dict[str, list[Any]]]:
    """Give the rows in their order, so many at a time, as columns of Python values."""
    for path in trace.files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield batch.to_pydict()


def write_csv(trace: Trace, out: TextIO) -> int:
    """Write one line a pick, as route-trace tools read them; return how many.

    turn = the text, step = the token's place in it, phase 0 = prefill and 1 = decode, slot = rank of the pick. Whether
    the expert was in memory is not in a trace: residency is -1, and expert_bytes is the expert's size.
    """
    out.write(f"# route_trace v1\n# run={trace.run}\n")
    for (component, layer), size in sorted(trace.expert_bytes.items()):
        out.write(f"# component={component} layer={layer} expert_bytes={size}\n")
    out.write(CSV_COLUMNS + "\n")
    count = 0
    for batch in batches(trace):
        rows = zip(
            *(batch[name] for name in ("component", "sequence", "phase", "position", "layer", "ids", "weights")),
            strict=True,
        )
        for component, sequence, phase, position, layer, ids, weights in rows:
            if position < 0:
                continue  # padding
            start = f"{sequence},{int(phase == 'decode')},{position},{layer}"
            end = f"{NOT_RECORDED},{trace.expert_bytes[component, layer]}\n"
            for slot, (expert, weight) in enumerate(zip(ids, weights, strict=True)):
                out.write(f"{start},{slot},{expert},{float(weight):.6g},{end}")
            count += len(ids)
    return count
