"""Puts the events of forward passes together: which picks of which layers are of the same tokens.

A prefill pass stands for itself. Decode passes hold one token of a sequence each, so 32 of them are put together, or
fewer where a batch or a score window ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from observer.stats import Array, Index
from observer.stats.windows import WINDOW_TOKENS
from segmoe.events import Routed, StepDone

Number = TypeVar("Number", bound=np.generic)


class LayerPicks(NamedTuple):
    """The picks of one layer, without padding, ordered by sequence and position. What was not captured is NaN."""

    layer: int
    sequence: NDArray[np.int32]  # [rows]
    position: NDArray[np.int32]  # [rows]
    ids: Index  # [rows, k]
    weights: Array  # [rows, k]
    c_norm: Array  # [rows, k]
    impact: Array  # [rows, k]
    sum_unit_norm: Array  # [rows]
    is_contributing: bool  # contributions were captured

    def has_rows_of(self, other: LayerPicks) -> bool:
        """Whether both are about the same tokens in the same order."""
        return np.array_equal(self.sequence, other.sequence) and np.array_equal(self.position, other.position)

    @property
    def is_finite(self) -> NDArray[np.bool_]:
        """Rows whose captured figures are all finite."""
        figures = self.weights + self.c_norm + self.impact if self.is_contributing else self.weights
        finite: NDArray[np.bool_] = np.isfinite(figures.sum(axis=1))
        return finite


class Stretch(NamedTuple):
    """Passes of one component that were put together."""

    component: str
    steps: tuple[int, ...]
    layers: list[LayerPicks]  # in the order of the model
    sequence: NDArray[np.int32]  # [rows] of the tokens that the passes were about, in the order of LayerPicks
    position: NDArray[np.int32]  # [rows]
    nll: Array  # [rows]

    def is_aligned(self, picks: LayerPicks) -> bool:
        """Whether the layer's rows are the same tokens in the same order."""
        return np.array_equal(picks.sequence, self.sequence) and np.array_equal(picks.position, self.position)


class Assembly:
    """Takes a component's events in their order and gives stretches. A pass that never ended is forgotten."""

    def __init__(self) -> None:
        self._routed: list[Routed] = []
        self._passes: list[tuple[StepDone, list[Routed]]] = []

    def routed(self, event: Routed) -> None:
        """Keep the event until its pass is over."""
        if self._routed and self._routed[0].step != event.step:
            self._routed = []
        self._routed.append(event)

    def step_done(self, event: StepDone) -> list[Stretch]:
        """Close the pass and give what is complete."""
        routed = [picks for picks in self._routed if picks.step == event.step]
        self._routed = []
        given = [] if event.phase == "decode" else self.flush()
        self._passes.append((event, routed))
        if event.phase != "decode" or len(self._passes) == WINDOW_TOKENS:
            given += self.flush()
        return given

    def flush(self) -> list[Stretch]:
        """Give what there is, complete or not."""
        passes, self._passes = self._passes, []
        if not passes:
            return []
        steps = [step for step, _ in passes]
        by_layer: dict[int, list[Routed]] = {}
        for _, routed in passes:
            for event in routed:
                by_layer.setdefault(event.layer, []).append(event)
        sequence, position = _joined([s.sequence for s in steps]), _joined([s.position for s in steps])
        rows = _order(sequence, position)
        nll = _joined([s.nll for s in steps])[rows].astype(np.float64)
        layers = [_picks(layer, by_layer[layer]) for layer in sorted(by_layer)]
        numbers = tuple(step.step for step in steps)
        return [Stretch(steps[0].component, numbers, layers, sequence[rows], position[rows], nll)]


def windows_of(sequence: NDArray[np.int32], position: NDArray[np.int32]) -> Index:
    """Number the windows of rows ordered by sequence and position: 32 tokens of one sequence, from 0.

    >>> rows = np.repeat(np.arange(2), (40, 3)).astype(np.int32), np.r_[0:40, 0:3].astype(np.int32)
    >>> np.bincount(windows_of(*rows)).tolist()
    [32, 8, 3]
    """
    if len(sequence) == 0:
        return np.zeros(0, dtype=np.intp)
    first = np.concatenate(([True], sequence[1:] != sequence[:-1]))
    began = position[np.maximum.accumulate(np.where(first, np.arange(len(sequence)), 0))]
    number = (position - began) // WINDOW_TOKENS
    new = first[1:] | (number[1:] != number[:-1])
    return np.concatenate(([0], np.cumsum(new))).astype(np.intp)


def texts_of(sequence: NDArray[np.int32]) -> Index:
    """Number the texts of rows ordered by sequence, from 0.

    >>> texts_of(np.array([4, 4, 7], np.int32)).tolist()
    [0, 0, 1]
    """
    return np.concatenate(([0], np.cumsum(sequence[1:] != sequence[:-1]))).astype(np.intp)[: len(sequence)]


def _picks(layer: int, events: list[Routed]) -> LayerPicks:
    sequence, position = _joined([e.sequence for e in events]), _joined([e.position for e in events])
    rows = _order(sequence, position)
    ids = _joined([e.topk_ids for e in events])[rows].astype(np.intp)
    weights = _joined([e.topk_weights for e in events])[rows].astype(np.float64)
    captured = [e.contribution for e in events if e.contribution is not None]
    is_contributing = len(captured) == len(events)
    if is_contributing:
        c_norm = _joined([c.c_norm for c in captured])[rows].astype(np.float64)
        sum_unit_norm = _joined([c.sum_unit_norm for c in captured])[rows].astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is sorted out by who reads it
            impact = _joined([c.impact() for c in captured])[rows]
    else:
        c_norm, impact = np.full((2, *weights.shape), np.nan)
        sum_unit_norm = np.full(len(weights), np.nan)
    return LayerPicks(
        layer, sequence[rows], position[rows], ids, weights, c_norm, impact, sum_unit_norm, is_contributing
    )


def _joined(parts: Sequence[NDArray[Number]]) -> NDArray[Number]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _order(sequence: NDArray[np.int32], position: NDArray[np.int32]) -> Index:
    """Rows that are tokens, by sequence and position."""
    rows = np.flatnonzero(position >= 0)
    return rows[np.lexsort((position[rows], sequence[rows]))]
