"""Merging score windows, so that a run keeps a bounded number of them however long it is. Adding them is writer.py.

When there is no room for another one, two windows become one: of one phase, neighbours in it, and of all such pairs the
one with the fewest tokens (of equals the first). So windows stay about equally long, and grow together. Sums add up;
what is a mean is weighted; what says how things stood at a window's end is that of the later one. What a run keeps
depends on its windows alone, not on when they were written.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from sqlalchemy import Connection

SUMS = (
    *("tokens", "nll_sum", "predicted", "hits", "misses", "loads", "evictions", "bytes_read"),
    *("passes", "wall_ns"),
)
"""Columns of score_window that add up."""

AT_END = (
    *("trust", "trust_low", "trust_high", "convergence", "stability", "efficiency"),
    *("blocks", "block_mean", "block_m2", "windows", "window_cv"),
)
"""Columns of expert_window that say how things stood at its end."""

COUNTS = ("uses", "ean", "hits", "misses", "evictions")
"""Columns of expert_window that add up."""

PER_USE = ("weight_mean", "reap", "surprise", "novelty", "arousal", "reward", "conflict")
"""Columns of expert_window that are means over the expert's uses."""


class Held(NamedTuple):
    """What decides about merging."""

    window_index: int
    phase: str
    tokens: int


def make_room(connection: Connection, run_id: int, most: int, *, below: int | None = None) -> None:
    """Merge windows of the run until one more may be added; those from the index `below` on stay as they are."""
    rows = connection.exec_driver_sql(
        "SELECT window_index, phase, tokens FROM score_window WHERE run_id = ? ORDER BY window_index", (run_id,)
    )
    windows = [Held(*tuple(row)) for row in rows]
    held = [window for window in windows if below is None or window.window_index < below]
    most -= len(windows) - len(held)
    while len(held) >= most and (pair := choose(held)) is not None:
        first, second = pair
        merge(connection, run_id, first.window_index, second.window_index)
        held[held.index(first)] = first._replace(tokens=first.tokens + second.tokens)
        held.remove(second)


def choose(held: Sequence[Held]) -> tuple[Held, Held] | None:
    """Return the pair to merge.

    >>> a, b, c, d = Held(0, "prefill", 9), Held(1, "decode", 1), Held(2, "prefill", 2), Held(3, "decode", 3)
    >>> choose([a, b, c, d]) == (b, d)
    True
    """
    pairs = [pair for phase in ("prefill", "decode") for pair in pairwise(w for w in held if w.phase == phase)]
    return min(pairs, key=lambda pair: (pair[0].tokens + pair[1].tokens, pair[0].window_index), default=None)


def merge(connection: Connection, run_id: int, first: int, second: int) -> None:
    """Make one window of two, with the index of the first."""
    both = {"run": run_id, "a": first, "b": second}
    connection.exec_driver_sql(MERGE_WINDOWS, both)
    connection.exec_driver_sql("DELETE FROM score_window WHERE run_id = :run AND window_index = :b", both)
    connection.exec_driver_sql(MERGE_EXPERTS, both)
    connection.exec_driver_sql(MOVE_EXPERTS, both)
    connection.exec_driver_sql("DELETE FROM expert_window WHERE run_id = :run AND window_index = :b", both)


def _mean(name: str, a: str, b: str) -> str:
    return f"{name} = (a.{name} * {a} + b.{name} * {b}) / MAX({a} + {b}, 1)"


MERGE_WINDOWS = f"""
UPDATE score_window AS a SET {", ".join(f"{name} = a.{name} + b.{name}" for name in SUMS)},
  last_window = b.last_window, last_step = b.last_step, last_token = b.last_token
FROM score_window AS b
WHERE a.run_id = :run AND a.window_index = :a AND b.run_id = :run AND b.window_index = :b"""

MERGE_EXPERTS = f"""
UPDATE expert_window AS a SET {", ".join(f"{name} = b.{name}" for name in AT_END)},
  {", ".join(f"{name} = a.{name} + b.{name}" for name in COUNTS)},
  {", ".join(_mean(name, "a.uses", "b.uses") for name in PER_USE)},
  {_mean("impact_mean", "picks.a", "picks.b")},
  load = (a.uses + b.uses) * 1.0 / MAX(picks.a + picks.b, 1)
FROM expert_window AS b, (
  SELECT component, layer,
    SUM(CASE WHEN window_index = :a THEN uses ELSE 0 END) AS a,
    SUM(CASE WHEN window_index = :b THEN uses ELSE 0 END) AS b
  FROM expert_window WHERE run_id = :run AND window_index IN (:a, :b) GROUP BY component, layer
) AS picks
WHERE a.run_id = :run AND a.window_index = :a AND b.run_id = :run AND b.window_index = :b
  AND b.component = a.component AND b.layer = a.layer AND b.expert = a.expert
  AND picks.component = a.component AND picks.layer = a.layer"""
"""A layer's picks stand for the tokens that it saw: each token picks equally many."""

MOVE_EXPERTS = """
UPDATE OR IGNORE expert_window SET window_index = :a WHERE run_id = :run AND window_index = :b"""
"""Where only the later window has rows."""
