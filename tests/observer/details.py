"""Rows of detail for synthetic runs: a plain function of the window, so that the same windows give the same rows."""

from dataclasses import replace

import numpy as np

from observer.rows import CoactivationRows, ExpertWindowRows, GapRow, SalienceRows, TraceFile
from observer.totals import Snapshot, Window


def with_details(snapshot: Snapshot) -> Snapshot:
    """The snapshot, with rows for every table."""
    if not snapshot.windows:
        return snapshot
    last = snapshot.windows[-1]
    return replace(
        snapshot,
        expert_windows=tuple(row for window in snapshot.windows for row in expert_windows(snapshot, window)),
        salience=tuple(salience(text.ordinal, text.tokens) for text in snapshot.texts),
        coactivation=(coactivation(last),),
        gaps=(GapRow("made up", 0, last.last_step, 1 + last.window_index),),
        trace_files=tuple(
            TraceFile(w.window_index, f"{w.window_index}.parquet", w.first_step, w.last_step, w.tokens, 10, "s")
            for w in snapshot.windows
        ),
    )


def expert_windows(snapshot: Snapshot, window: Window) -> list[ExpertWindowRows]:
    rows = []
    for table in snapshot.tables:
        if table.context == "*":
            shape = table.scores.trust.shape
            part = np.random.default_rng(window.window_index).random((8, *shape))
            counts = (part[5:] * 9).astype(np.int64)
            rows.append(
                ExpertWindowRows(
                    window_index=window.window_index,
                    component=table.component,
                    layers=table.layers,
                    scores=table.scores._replace(uses=(part[4] * window.tokens).astype(np.int64)),
                    **dict(zip(("surprise", "novelty", "arousal", "reward", "conflict"), part, strict=False)),
                    **dict(zip(("hits", "misses", "evictions"), counts, strict=True)),
                )
            )
    return rows


def salience(ordinal: int, tokens: int) -> SalienceRows:
    position = np.arange(0, tokens, 32)
    part = np.random.default_rng(ordinal).random((5, len(position)))
    return SalienceRows(
        component="model",
        ordinal=np.full(len(position), ordinal),
        position=position,
        tokens=np.minimum(32, tokens - position),
        **dict(zip(("surprise", "novelty", "arousal", "reward", "conflict"), part, strict=True)),
        salience=part.mean(axis=0),
        nll_sum=part[0] * 32,
        predicted=np.full(len(position), 32),
        definition_version=1,
    )


def coactivation(window: Window) -> CoactivationRows:
    ones = np.ones(2, np.int64)
    return CoactivationRows(
        component="model",
        layer=0 * ones,
        expert=0 * ones,
        other_layer=np.array([0, 2]),
        other_expert=ones,
        count=ones * (1 + window.window_index),
        lift=ones / 2,
    )
