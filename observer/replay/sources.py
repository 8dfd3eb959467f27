"""Where a trace comes from: a file that is given, or a run of the record. Reading the forms is *_form.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Engine, RowMapping

from observer.db.session import reading
from observer.errors import ObserverError
from observer.replay.csv_form import read_csv
from observer.replay.parquet_form import read_parquet
from observer.replay.sweep import Setting
from observer.replay.trace import Trace
from observer.runs import find_run, read_trust
from observer.trace_read import open_trace
from segmoe.events import ExpertKey


class RunTrace(NamedTuple):
    """The trace of a run, and what the run itself has counted."""

    trace: Trace
    run: RowMapping  # of v_run
    trust: dict[ExpertKey, float]  # over all contexts: of the run that its policy took it from, or of itself
    bytes_per_s: float | None  # of the loads that the record holds; None if it holds none

    @property
    def own(self) -> Setting:
        """The policy and the budget that the run had."""
        in_bytes = json.loads(self.run["config"]).get("budget") is not None
        nbytes = int(self.run["budget_bytes"]) if in_bytes else None
        return Setting(str(self.run["policy"]), int(self.run["budget_experts"]), nbytes)

    @property
    def share(self) -> float:
        """Accesses in the trace per access of the run: below 1 if the trace was sampled, capped or begun late."""
        return len(self.trace) / max(int(self.run["hits"] + self.run["misses"]), 1)


def read_file(path: Path) -> Trace:
    """A trace in the public CSV form, a Parquet file of a run's trace, or a folder of these."""
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
        if not files:
            raise ObserverError(f"{path} holds no Parquet files; give a run's trace folder, or a file")
        return read_parquet(files)
    if not path.exists():
        raise ObserverError(f"{path} does not exist; give a route trace, or --run to take one from the record")
    return read_parquet([path]) if path.suffix == ".parquet" else read_csv(path)


def read_run(engine: Engine, name: str | None) -> RunTrace:
    """The trace of the named run, or of the last that has one."""
    files = open_trace(engine, name)
    run = find_run(engine, files.run)
    with reading(engine).begin() as connection:
        sizes = connection.exec_driver_sql(
            "SELECT component, layer, expert, bytes FROM v_expert WHERE run_id = ?", (run["run_id"],)
        ).fetchall()
        read, took = connection.exec_driver_sql(
            "SELECT COALESCE(SUM(bytes), 0), COALESCE(SUM(read_ns), 0) FROM v_residency_event "
            "WHERE run_id = ? AND kind = 'load'",
            (run["run_id"],),
        ).one()
    nbytes = {ExpertKey(component, layer, expert): size for component, layer, expert, size in sizes}
    source = json.loads(run["config"]).get("trust_from") or files.run  # what its policy saw, or else what it found
    rate = read / took * 1e9 if took and read else None
    return RunTrace(read_parquet(files.files, nbytes), run, dict(read_trust(engine, source)), rate)
