"""A run, and asking one of the questions in sql/."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from dashboard.connection import Mirror

ALL_CONTEXTS = "*"
STALE_AFTER = timedelta(seconds=60)
SQL = Path(__file__).parents[1] / "sql"


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
    sequences: int
    sequences_planned: int  # 0 if nobody knows
    tokens: int
    parity: str  # equal | different | unchecked
    capture: str
    policy: str
    budget_experts: int
    model_family: str
    checkpoint: str
    checkpoint_digest: str
    config: str  # JSON
    versions: str  # JSON
    drops: str  # JSON, dropped events by reason
    bytes_read: int
    evictions: int
    events_seen: int
    events_dropped: int
    queue_events: int
    queue_most: int
    queue_capacity: int  # 0 if nobody told
    waited_s: float  # that the model waited for a place in the queue
    experts: int
    nll: float | None  # nats per predicted token
    hit_rate: float | None  # 0..1
    recorded_frac: float | None  # 0..1

    def is_live(self, now: datetime) -> bool:
        """Say whether the run is going on: started, and heard of within STALE_AFTER."""
        return self.status == "started" and now - self.heard_at() <= STALE_AFTER

    def heard_at(self) -> datetime:
        """Return when the run last gave a sign of life."""
        moment = datetime.fromisoformat(self.heartbeat_at or self.started_at)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def ask(
    mirror: Mirror, question: str, given: Mapping[str, pa.Table] | None = None, /, **parameters: object
) -> pa.Table:
    """Answer the question in sql/ of that name; rows that are given for a view stand for it."""
    return mirror.table(_sql(question), parameters, given)


def rows(mirror: Mirror, question: str, **parameters: object) -> list[dict[str, Any]]:
    """Answer the question, a dict a row."""
    found: list[dict[str, Any]] = ask(mirror, question, **parameters).to_pylist()
    return found


@cache
def _sql(question: str) -> str:
    return (SQL / f"{question}.sql").read_text(encoding="utf-8")
