"""Questions about experts: all of them on a map, one of them over time, and who goes with it."""

from typing import Any

import pyarrow as pa

from dashboard import expert_windows
from dashboard.connection import Mirror
from dashboard.contract import EXPERT_WINDOWS
from dashboard.queries.base import ask, rows


def contexts(mirror: Mirror, run_id: int) -> list[str]:
    """Contexts that the run holds trust for, `*` first; empty while it has none."""
    names: list[str] = ask(mirror, "contexts", run_id=run_id)["context"].to_pylist()
    return names


def expert_map(mirror: Mirror, run_id: int, context: str) -> pa.Table:
    """One row per (component, layer, expert): trust, load, uses, as they stand, in one context."""
    return ask(mirror, "expert_map", run_id=run_id, context=context)


def residencies(mirror: Mirror, run_id: int) -> pa.Table:
    """One row per (component, layer, expert): the share of the passes that wanted it and found it in memory."""
    return ask(mirror, "residency", run_id=run_id)


def expert_map_at(mirror: Mirror, run_id: int, window_index: int) -> pa.Table:
    """The same columns for one score window, all contexts together: trust at its end, load and uses in it."""
    rows = expert_windows.of_window(mirror.path, run_id, window_index)
    return ask(mirror, "expert_map_at", {EXPERT_WINDOWS: rows}, run_id=run_id, window_index=window_index)


def expert_difference(mirror: Mirror, run_id: int, other_id: int, context: str) -> pa.Table:
    """One row per (component, layer, expert) of the run: its trust minus that in the other, null if it has none."""
    return ask(mirror, "expert_difference", run_id=run_id, other_id=other_id, context=context)


def layers(mirror: Mirror, run_id: int, context: str) -> pa.Table:
    """One row per (component, layer): entropy of its load as a share of the greatest possible, and dead experts."""
    return ask(mirror, "layers", run_id=run_id, context=context)


def expert(mirror: Mirror, run_id: int, component: str, layer: int, expert: int) -> list[dict[str, Any]]:
    """One row per context for one expert; empty if there is no such expert."""
    return rows(mirror, "expert", run_id=run_id, component=component, layer=layer, expert=expert)


def expert_history(mirror: Mirror, run_id: int, component: str, layer: int, expert: int) -> pa.Table:
    """One row per score window for one expert, by tokens so far."""
    own = expert_windows.of_expert(mirror.path, run_id, component, layer, expert)
    key = {"component": component, "layer": layer, "expert": expert}
    return ask(mirror, "expert_history", {EXPERT_WINDOWS: own}, run_id=run_id, **key)


def neighbours(mirror: Mirror, run_id: int, component: str, layer: int, expert: int) -> list[dict[str, Any]]:
    """The experts that are most often picked with one beyond chance, at most 20, of its layer and the next ones."""
    return rows(mirror, "neighbours", run_id=run_id, component=component, layer=layer, expert=expert)
