"""Questions about the figures themselves: what is missing, how far they can be trusted, how the job kept up."""

from typing import Any

import pyarrow as pa

from dashboard.connection import Mirror
from dashboard.queries.base import ask, rows


def gaps(mirror: Mirror, run_id: int) -> list[dict[str, Any]]:
    """What was not recorded, by reason and passes."""
    return rows(mirror, "gaps", run_id=run_id)


def pace(mirror: Mirror, run_id: int) -> pa.Table:
    """Tokens per second in forward passes, a row per score window."""
    return ask(mirror, "pace", run_id=run_id)


def trace(mirror: Mirror, run_id: int) -> list[dict[str, Any]]:
    """The raw route trace: files, rows, bytes and passes; no row if there is none."""
    return rows(mirror, "trace", run_id=run_id)


def validation(mirror: Mirror, run_id: int) -> pa.Table:
    """How well each statistic foretold the cost of removal, by scope; and by how much trust is ahead of others."""
    return ask(mirror, "validation", run_id=run_id)


def coverage(mirror: Mirror, run_id: int) -> list[dict[str, Any]]:
    """The share of the 90% intervals of trust that held what other texts said, a row per context."""
    return rows(mirror, "coverage", run_id=run_id)
