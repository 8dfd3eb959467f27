"""What pages ask of the record, one function per file in sql/. Drawing the answers is charts.py, phrasing words.py."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from dashboard.connection import Mirror

ALL_CONTEXTS = "*"
STALE_AFTER = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One row of runs.sql."""

    run_id: int
    name: str
    status: str  # started | done | cancelled | error
    error: str
    started_at: str  # ISO-8601 UTC
    heartbeat_at: str
    finished_at: str
    tokens: int
    parity: str  # equal | different | unchecked
    events_seen: int
    events_dropped: int
    nll: float | None  # nats per predicted token
    hit_rate: float | None  # 0..1
    recorded_frac: float | None  # 0..1

    def is_live(self, now: datetime) -> bool:
        """Say whether the run is going on: started, and heard of within STALE_AFTER."""
        return self.status == "started" and now - _moment(self.heartbeat_at or self.started_at) <= STALE_AFTER


def runs(mirror: Mirror) -> list[Run]:
    """All runs, newest first."""
    return [Run(**row) for row in _ask(mirror, "runs").to_pylist()]


def contexts(mirror: Mirror, run_id: int) -> list[str]:
    """Contexts that the run holds trust for, `*` first; empty while it has none."""
    names: list[str] = _ask(mirror, "contexts", run_id=run_id)["context"].to_pylist()
    return names


def expert_map(mirror: Mirror, run_id: int, context: str) -> pa.Table:
    """One row per (component, layer, expert): trust, load, uses, in one context."""
    return _ask(mirror, "expert_map", run_id=run_id, context=context)


def expert(mirror: Mirror, run_id: int, component: str, layer: int, expert: int) -> list[dict[str, Any]]:
    """One row per context for one expert; empty if there is no such expert."""
    table = _ask(mirror, "expert", run_id=run_id, component=component, layer=layer, expert=expert)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _ask(mirror: Mirror, question: str, **parameters: object) -> pa.Table:
    return mirror.table(_sql(question), parameters)


@cache
def _sql(question: str) -> str:
    return (Path(__file__).parent / "sql" / f"{question}.sql").read_text(encoding="utf-8")


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
