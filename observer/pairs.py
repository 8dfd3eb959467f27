"""The pairs of experts that tell most, as rows of the record. Counting them is stats/."""

from __future__ import annotations

import numpy as np

from observer.grid import Grid
from observer.rows import CoactivationRows
from observer.stats import Array, Coactivation, Index, Transitions

PAIRS_A_LAYER = 64
"""Pairs kept of each layer, and as many from it to the next. All of 48 layers of 128 experts would be a million."""


def pair_rows(grid: Grid, together: Coactivation, after: Transitions, keep: int = PAIRS_A_LAYER) -> CoactivationRows:
    """Choose the pairs with the largest |count x ln lift|, those that tell most of each other (Dunning 1993)."""
    layer = np.asarray(grid.layers, dtype=np.int64)
    counts, lift = together.get()
    row, first, second = _most(np.triu(counts, 1), lift, keep)
    across, _, lift_across = after.get()
    next_row, before, now = _most(across, lift_across, keep)
    return CoactivationRows(
        component=grid.component,
        layer=np.concatenate((layer[row], layer[np.maximum(next_row - 1, 0)])),
        expert=np.concatenate((first, before)).astype(np.int64),
        other_layer=np.concatenate((layer[row], layer[next_row])),
        other_expert=np.concatenate((second, now)).astype(np.int64),
        count=np.concatenate((counts[row, first, second], across[next_row, before, now])).astype(np.int64),
        lift=np.concatenate((lift[row, first, second], lift_across[next_row, before, now])),
    )


def _most(counts: Array, lift: Array, keep: int) -> tuple[Index, Index, Index]:
    """Layer row, first and second expert of the pairs with the largest |count x ln lift| of each layer."""
    tells = np.abs(counts * np.log(lift, out=np.zeros(lift.shape), where=lift > 0))
    layers, experts = tells.shape[:2]
    flat = tells.reshape(layers, -1)
    best = np.argsort(-flat, axis=1, kind="stable")[:, :keep]
    row, column = np.nonzero(np.take_along_axis(flat, best, axis=1) > 0)
    cell = best[row, column]
    return row, cell // experts, cell % experts
