"""Questions about runs: which there are, how each went on, what differs between two."""

from typing import Any

import pyarrow as pa

from dashboard.connection import Mirror
from dashboard.queries.base import Run, ask, rows


def runs(mirror: Mirror) -> list[Run]:
    """All runs, newest first."""
    return [Run(**row) for row in rows(mirror, "runs")]


def sparklines(mirror: Mirror) -> dict[int, list[float]]:
    """Hit rate over at most 60 stretches of each run, by run id."""
    return {row["run_id"]: row["hit_rates"] for row in rows(mirror, "sparklines")}


def windows(mirror: Mirror, run_id: int) -> pa.Table:
    """One row per score window: tokens so far, NLL, hit rate, loads, evictions, pace."""
    return ask(mirror, "windows", run_id=run_id)


def difference(mirror: Mirror, run_id: int, other_id: int) -> list[dict[str, Any]]:
    """The experts whose trust differs most between two runs, all contexts together, at most 20."""
    return rows(mirror, "difference", run_id=run_id, other_id=other_id)
