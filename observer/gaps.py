"""What was not recorded, by reason and forward pass. Who loses events is collect.py and observation.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from observer.rows import GapRow
from observer.state import Arrays

SAME_GAP_STEPS = 100
"""Losses of one reason that are at most so many passes apart are one gap, so that a bad day gives few rows."""


class Gaps:
    """Counts losses; `changed` are the gaps to be written.

    >>> gaps = Gaps()
    >>> for step in (3, 4, 500):
    ...     gaps.add("queue full", step)
    >>> [tuple(gap) for gap in gaps.take_changed()], gaps.take_changed()
    ([('queue full', 3, 4, 2), ('queue full', 500, 500, 1)], ())
    """

    def __init__(self) -> None:
        self._open: dict[str, GapRow] = {}
        self._changed: dict[tuple[str, int], GapRow] = {}

    def add(self, reason: str, step: int, count: int = 1) -> None:
        """Count events of this pass that were lost for this reason."""
        gap = self._open.get(reason)
        if gap is None or step - gap.last_step > SAME_GAP_STEPS:
            gap = GapRow(reason, step, step, count)
        else:
            gap = gap._replace(last_step=max(step, gap.last_step), events=gap.events + count)
        self._open[reason] = gap
        self._changed[gap.reason, gap.first_step] = gap

    def take_changed(self) -> tuple[GapRow, ...]:
        """Return what changed since the last time."""
        changed, self._changed = tuple(self._changed.values()), {}
        return changed

    def state(self) -> Arrays:
        """Return the gaps that may still grow."""
        rows = list(self._open.values())
        return {
            "reasons": np.array([row.reason for row in rows], dtype=np.str_),
            "numbers": np.array([row[1:] for row in rows], dtype=np.int64).reshape(len(rows), 3),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state."""
        pairs = zip(state["reasons"].tolist(), state["numbers"].tolist(), strict=True)
        self._open = {reason: GapRow(reason, *numbers) for reason, numbers in pairs}
        self._changed = {}
