"""Questions about memory: what came and went, why, and what came back."""

from typing import Any

import pyarrow as pa

from dashboard.connection import Mirror
from dashboard.queries.base import ask, rows

RESIDENCY_STRIP_CAP = 500


def residency_by_step(mirror: Mirror, run_id: int) -> pa.Table:
    """Loads and evictions in at most 400 stretches of equally many passes, of the logged events."""
    return ask(mirror, "residency_by_step", run_id=run_id)


def reasons(mirror: Mirror, run_id: int) -> pa.Table:
    """Logged events by kind and reason: how many, bytes, time waited."""
    return ask(mirror, "reasons", run_id=run_id)


def regret(mirror: Mirror, run_id: int) -> pa.Table:
    """Logged evictions by how soon their expert was loaded again."""
    return ask(mirror, "regret", run_id=run_id)


def trust_of_evicted(mirror: Mirror, run_id: int) -> list[dict[str, Any]]:
    """Logged evictions of the experts in each quarter of trust within their layer."""
    return rows(mirror, "trust_of_evicted", run_id=run_id)


def expert_residency(mirror: Mirror, run_id: int, component: str, layer: int, expert: int) -> pa.Table:
    """Stretches of passes that one expert was in memory for, from the logged events; at most RESIDENCY_STRIP_CAP."""
    return ask(
        mirror,
        "expert_residency",
        run_id=run_id,
        component=component,
        layer=layer,
        expert=expert,
        most=RESIDENCY_STRIP_CAP,
    )
