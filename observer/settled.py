"""When a ranking stopped moving, and the score of any past window from what the record keeps. Scoring is trust.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata
from sqlalchemy import Engine

from observer.db.session import reading
from observer.errors import ObserverError
from observer.stats import Array
from observer.stats.blocks import BlockFigures
from observer.trust import DEFAULTS, Convergence, TrustSettings, convergence

NARROW = 0.2
"""An expert's trust is known where its 90% interval is narrower than this."""


class Settled(NamedTuple):
    """One layer of a component; 1 and 1 is a ranking that more text will hardly change."""

    component: str
    layer: int
    rho: float  # Spearman between the ranking now and at half the evidence; 0 without evidence
    narrow: float  # share of experts whose interval is narrower than 0.2
    blocks: int  # of evidence now


def settled_layer(now: Array, half: Array, low: Array, high: Array) -> tuple[float, float]:
    """Tell rho and the share of narrow intervals of one layer, from trust [expert] now and at half the evidence.

    >>> settled_layer(*map(np.array, ([0.1, 0.5, 0.9], [0.2, 0.4, 0.8], [0.0, 0.4, 0.6], [0.1, 0.8, 0.7])))
    (1.0, 0.6666666666666666)
    """
    ranks = rankdata(now), rankdata(half)
    known = all(np.ptp(rank) > 0 for rank in ranks)
    rho = round(float(np.corrcoef(*ranks)[0, 1]), 12) if known else 0.0
    return rho, float((high - low < NARROW).mean())


def settled(engine: Engine, run: str) -> list[Settled]:
    """Tell how settled each layer of a run is, all contexts together, from its score windows."""
    with reading(engine).begin() as connection:
        rows = connection.exec_driver_sql(
            "SELECT component, layer, window_index, expert, trust, trust_low, trust_high, blocks FROM v_expert_window "
            "WHERE run_id = (SELECT run_id FROM v_run WHERE name = ?) ORDER BY component, layer, window_index, expert",
            (run,),
        ).fetchall()
    by_layer: dict[tuple[str, int], dict[int, list[tuple[float, ...]]]] = {}
    for component, layer, window, _, *figures in rows:
        by_layer.setdefault((component, layer), {}).setdefault(window, []).append(tuple(figures))
    found = []
    for (component, layer), windows in by_layer.items():
        blocks = {window: figures[0][3] for window, figures in windows.items()}
        last = max(windows)
        half = min(windows, key=lambda window: (abs(blocks[window] - blocks[last] / 2), window))
        now, then = np.array(windows[last]).T, np.array(windows[half]).T
        found.append(Settled(component, layer, *settled_layer(now[0], then[0], now[1], now[2]), int(blocks[last])))
    return found


def rebuild(
    engine: Engine, run: str, window_index: int, component: str, settings: TrustSettings = DEFAULTS
) -> Convergence:
    """Compute convergence, which is trust since version 2, as it stood at the end of a window, [layer, expert].

    The evidence is what the record keeps beside each score: blocks, block_mean, block_m2.
    """
    with reading(engine).begin() as connection:
        rows = connection.exec_driver_sql(
            "SELECT layer, expert, blocks, block_mean, block_m2 FROM v_expert_window "
            "WHERE run_id = (SELECT run_id FROM v_run WHERE name = ?) AND window_index = ? AND component = ? "
            "ORDER BY layer, expert",
            (run, window_index, component),
        ).fetchall()
    if not rows:
        raise ObserverError(f"run {run!r} has no window {window_index} of {component}; look for it in v_expert_window")
    layers = len({row[0] for row in rows})
    blocks, mean, m2 = np.array([row[2:] for row in rows], np.float64).reshape(layers, -1, 3).transpose(2, 0, 1)
    return convergence(BlockFigures(blocks[:, :1], mean, m2), settings)
