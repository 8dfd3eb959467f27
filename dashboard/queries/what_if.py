"""Questions about what might have been: other policies and budgets on a run's trace."""

from typing import Any

import pyarrow as pa

from dashboard.connection import Mirror
from dashboard.queries.base import ask, rows


def what_if_phases(mirror: Mirror, run_id: int) -> list[str]:
    """Phases that curves are known for: all, prefill, decode; empty if none were made."""
    phases: list[str] = ask(mirror, "what_if_phases", run_id=run_id)["phase"].to_pylist()
    return phases


def what_if(mirror: Mirror, run_id: int, phase: str) -> pa.Table:
    """One row per policy, Belady's too, and budget: miss ratio with its interval, and what was read."""
    return ask(mirror, "what_if", run_id=run_id, phase=phase)


def what_if_policies(mirror: Mirror, run_id: int, phase: str) -> list[dict[str, Any]]:
    """The policies that a run can have, by their mean miss ratio over all budgets, the least first."""
    return rows(mirror, "what_if_policies", run_id=run_id, phase=phase)


def what_if_at_own(mirror: Mirror, run_id: int, phase: str) -> list[dict[str, Any]]:
    """One row per policy with the run's own budget, the fewest misses first; empty if its own is not known."""
    return rows(mirror, "what_if_at_own", run_id=run_id, phase=phase)
