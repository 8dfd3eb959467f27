"""Questions about salience: the stream over a run, its peaks, and what followed them."""

from typing import Any

import pyarrow as pa

from dashboard.connection import Mirror
from dashboard.queries.base import ask, rows


def salience_stream(mirror: Mirror, run_id: int, component: str) -> pa.Table:
    """Least, greatest and last salience in at most 500 stretches of equally many windows, in the order of the texts."""
    return ask(mirror, "salience_stream", run_id=run_id, component=component)


def moments(
    mirror: Mirror, run_id: int, component: str, *, context: str, driven_by: str, most: int
) -> list[dict[str, Any]]:
    """The most salient windows, each with its five scores, text, and the NLL before, in and after it.

    `context` `*` and `driven_by` '' leave nothing out.
    """
    return rows(mirror, "moments", run_id=run_id, component=component, context=context, driven_by=driven_by, most=most)


def after(mirror: Mirror, run_id: int, component: str) -> list[dict[str, Any]]:
    """Mean NLL before, in and after windows by quarter of salience; 4 is the most salient."""
    return rows(mirror, "after", run_id=run_id, component=component)
