"""What one component has shown beside its ledgers: pairs, salience, and each expert in the score window under way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from observer.assembly import Stretch, windows_of
from observer.grid import Grid
from observer.ledger import Scores
from observer.pairs import pair_rows
from observer.rows import CoactivationRows, ExpertWindowRows, SalienceRows
from observer.salience import DEFINITION_VERSION, DIMENSIONS, Scorer, Window
from observer.state import Arrays, below, under
from observer.stats import Coactivation, Index, Magnitude, Picks, Transitions, Usage

NAMES = ("accesses", "misses", "evictions")


class Detail:
    """Updated with all contexts together. `salience` holds rows that were not yet taken away by the owner."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.shape = (len(grid.layers), grid.experts)
        self.coactivation = Coactivation.zeros(*self.shape)
        self.transitions = Transitions.zeros(*self.shape)
        self.scorer = Scorer(*self.shape)
        self.salience: list[SalienceRows] = []
        self._rows = grid.rows
        self._new_window()

    def _new_window(self) -> None:
        self.usage, self.magnitude = Usage.zeros(*self.shape), Magnitude.zeros(*self.shape)
        self.accesses = {name: np.zeros(self.shape, np.int64) for name in NAMES}

    def learn(self, picks: Picks) -> None:
        """Take one layer's picks of all contexts."""
        for estimator in (self.coactivation, self.transitions, self.usage):
            estimator.update(picks)
        if picks.is_contributing:
            self.magnitude.update(picks)

    def accessed(self, layer: int, experts: Index) -> None:
        """Count the distinct experts that a layer's pass asked for."""
        self.accesses["accesses"][self._rows[layer], experts] += 1

    def loaded(self, layer: int, expert: int) -> None:
        """Count a miss."""
        self.accesses["misses"][self._rows[layer], expert] += 1

    def evicted(self, layer: int, expert: int) -> None:
        """Count an eviction."""
        self.accesses["evictions"][self._rows[layer], expert] += 1

    def score(self, stretch: Stretch, ordinals: Sequence[int]) -> None:
        """Score the stretch's windows in the order of their sequences; row r of the batch is text ordinals[r]."""
        layers = [p for p in stretch.layers if stretch.is_aligned(p) and p.ids.shape == stretch.layers[0].ids.shape]
        if not layers or len(stretch.sequence) == 0:
            return
        usable = stretch.sequence < len(ordinals)
        for picks in layers:
            usable &= picks.is_finite
        rows = np.flatnonzero(usable)
        if len(rows) == 0:
            return
        window = windows_of(stretch.sequence[rows], stretch.position[rows])
        starts = np.flatnonzero(np.diff(window, prepend=-1))
        number = np.array([self._rows[picks.layer] for picks in layers], dtype=np.intp)
        ids, weights = np.stack([p.ids[rows] for p in layers], 1), np.stack([p.weights[rows] for p in layers], 1)
        sum_unit_norm = np.stack([p.sum_unit_norm[rows] for p in layers], 1)
        nll = stretch.nll[rows]
        found = []
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
            part = slice(start, end)
            scored = self.scorer.score(Window(number, ids[part], weights[part], sum_unit_norm[part], nll[part]))
            found.append((*scored.scores, scored.salience))
        known = np.isfinite(nll)
        columns = np.array(found).T
        self.salience.append(
            SalienceRows(
                component=self.grid.component,
                ordinal=np.array(ordinals, dtype=np.int64)[stretch.sequence[rows[starts]]],
                position=stretch.position[rows[starts]].astype(np.int64),
                tokens=np.bincount(window).astype(np.int64),
                **dict(zip((*DIMENSIONS, "salience"), columns, strict=True)),
                nll_sum=np.bincount(window, np.where(known, nll, 0.0)).astype(np.float64),
                predicted=np.bincount(window, known).astype(np.int64),
                definition_version=DEFINITION_VERSION,
            )
        )

    def end_window(self, window_index: int, scores: Scores) -> ExpertWindowRows:
        """Tell each expert in the score window that ends, and begin the next; `scores` are as they stand now."""
        usage, magnitude = self.usage.get(), self.magnitude.get()
        alone: dict[str, Any] = {
            "uses": usage.uses.astype(np.int64),
            "load": usage.load,
            "weight_mean": usage.weight_mean,
            "ean": magnitude.ean,
            "reap": magnitude.reap,
            "impact_mean": magnitude.impact_mean,
        }
        counts = self.accesses
        own = dict(zip(DIMENSIONS, self.scorer.take_own(), strict=True))
        rows = ExpertWindowRows(
            window_index=window_index,
            component=self.grid.component,
            layers=self.grid.layers,
            scores=scores._replace(**alone),
            **own,
            hits=np.maximum(counts["accesses"] - counts["misses"], 0),
            misses=counts["misses"],
            evictions=counts["evictions"],
        )
        self._new_window()
        return rows

    def pairs(self) -> CoactivationRows:
        """Tell the pairs as they stand."""
        return pair_rows(self.grid, self.coactivation, self.transitions)

    def state(self) -> Arrays:
        """Return all that later rows depend on."""
        arrays: Arrays = {name: counts.copy() for name, counts in self.accesses.items()}
        for name in ("coactivation", "transitions", "usage", "magnitude", "scorer"):
            arrays |= under(name, getattr(self, name).to_state())
        return arrays

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state."""
        self.accesses = {name: state[name].copy() for name in NAMES}
        self.coactivation = Coactivation.from_state(below("coactivation", state))
        self.transitions = Transitions.from_state(below("transitions", state))
        self.usage = Usage.from_state(below("usage", state))
        self.magnitude = Magnitude.from_state(below("magnitude", state))
        self.scorer.restore(below("scorer", state))
        self.salience = []


def joined_salience(parts: Sequence[SalienceRows]) -> SalienceRows | None:
    """Put rows of one component together."""
    if not parts:
        return None
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("ordinal", "position", "tokens", *DIMENSIONS, "salience", "nll_sum", "predicted")
    }
    return SalienceRows(component=parts[0].component, definition_version=parts[0].definition_version, **arrays)
