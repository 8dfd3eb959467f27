"""Does trust predict? Rank correlation of what a run recorded with what removing each expert costs on other text.

What removal costs is ablation.py, what the other texts say by themselves heldout.py; here both are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sqlalchemy import Engine

from observer.ablation import Ablation, Array
from observer.db.session import reading
from observer.errors import ObserverError
from observer.heldout import Falls, Statistics, in_order
from observer.observation import ALL
from observer.rows import ValidationRow
from observer.totals import ScoreTable
from observer.trust import DEFINITION_VERSION
from segmoe.events import ExpertKey

STATISTICS = {
    "trust": "trust",
    "convergence": "convergence",
    "stability": "stability",
    "efficiency": "efficiency",
    "impact per token (I)": "impact_mean",
    "REAP": "reap",
    "EAN": "ean",
    "mean routing weight": "weight_mean",
    "activation frequency": "load",
}
"""Name shown, and the column of v_expert_trust."""

FALLS = "NLL falls at its tokens"
RIVAL = "REAP"
SCOPES = ("global", "within layer", "per context")
COVERAGE = "90% intervals that hold"


class Correlation(NamedTuple):
    """Spearman's rho of a statistic with the cost of removal, and its 90% bootstrap interval."""

    value: float
    low: float  # 5th percentile
    high: float  # 95th percentile


class Coverage(NamedTuple):
    """How many of the run's intervals hold what the other texts say."""

    context: str
    share: float
    too_high: float  # share of experts that the other texts put lower than the interval allows
    too_low: float


def read_statistics(engine: Engine, run: str, keys: list[ExpertKey]) -> Statistics:
    """What the run recorded: context -> statistic -> [experts] in the order of `keys`; also the interval of trust."""
    columns = (*STATISTICS.values(), "trust_low", "trust_high")
    with reading(engine).begin() as connection:
        rows = connection.exec_driver_sql(
            f"SELECT context, component, layer, expert, {', '.join(columns)} FROM v_expert_trust "
            "WHERE run_id = (SELECT run_id FROM v_run WHERE name = ?)",
            (run,),
        ).fetchall()
    by_context: dict[str, dict[ExpertKey, tuple[float, ...]]] = {}
    for context, component, layer, expert, *values in rows:
        by_context.setdefault(context, {})[ExpertKey(component, layer, expert)] = tuple(values)
    if not rows or not set(by_context[ALL]) >= set(keys):
        raise ObserverError(f"run {run!r} holds other experts than the model; validate it with the model it observed")
    names = (*STATISTICS, "trust_low", "trust_high")
    return {
        context: dict(zip(names, np.array([values[key] for key in keys]).T, strict=True))
        for context, values in by_context.items()
    }


def sample_experts(statistics: Statistics, keys: Sequence[ExpertKey], count: int, seed: int = 0) -> list[ExpertKey]:
    """About `count` experts: as many of each layer, spread over its ranks of impact, one drawn from each stratum."""
    random = np.random.default_rng(seed)
    impact = statistics[ALL]["impact per token (I)"]
    layers: dict[tuple[str, int], list[int]] = {}
    for place, key in enumerate(keys):
        layers.setdefault((key.component, key.layer), []).append(place)
    each = max(2, round(count / len(layers)))
    chosen = []
    for places in layers.values():
        ranked = sorted(places, key=lambda place: impact[place])
        chosen += [int(random.choice(stratum)) for stratum in np.array_split(ranked, min(each, len(ranked)))]
    return [keys[place] for place in sorted(chosen)]


def add_held_out(
    statistics: Statistics,
    keys: Sequence[ExpertKey],
    falls: Falls,
    nulls: dict[str, tuple[ScoreTable, ...]],
) -> None:
    """Add what was taken from the other texts, in which it has an advantage: the earlier idea, and the null tests."""
    for context, by_name in statistics.items():
        by_name[FALLS] = falls.scores(keys, context)
        for name, tables in nulls.items():
            found = in_order(tables, keys, "trust")
            by_name[name] = found.get(context, found[ALL])


def correlate(
    ablation: Ablation, statistics: Statistics, *, samples: int = 500, seed: int = 0
) -> dict[str, dict[str, Correlation]]:
    """Statistic -> scope -> rho. Scopes: global, within layer (mean over layers), per context (mean), each context.

    The bootstrap draws experts (within their layer) and texts (within their context) anew in each sample: an interval
    speaks of other experts and other texts of the same kind. The last statistic is the difference of trust and REAP.
    """
    random = np.random.default_rng(seed)
    layers = np.array([f"{key.component}/{key.layer}" for key in ablation.keys])
    by_layer = [np.flatnonzero(layers == layer) for layer in dict.fromkeys(layers)]
    labels = np.array(ablation.contexts)
    known = [context for context in dict.fromkeys(ablation.contexts) if context in statistics]
    by_context = [np.flatnonzero(labels == context) for context in known]
    names = [name for name in statistics[ALL] if not name.startswith("trust_")]

    def all_rhos(layers: list[NDArray[np.intp]], texts: list[NDArray[np.intp]]) -> Array:
        """[statistic, scope]"""
        experts = np.concatenate(layers)
        cost = [ablation.cost[:, part].sum(1) / ablation.predicted[part].sum() for part in texts]
        whole = np.concatenate(texts)
        overall = ablation.cost[:, whole].sum(1) / ablation.predicted[whole].sum()
        rows = []
        for name in names:
            everything = statistics[ALL][name]
            each = [spearman(statistics[c][name][experts], k[experts]) for c, k in zip(known, cost, strict=True)]
            within = np.mean([spearman(everything[part], overall[part]) for part in layers])
            rows.append([spearman(everything[experts], overall[experts]), within, np.mean(each), *each])
        found = np.array(rows)
        return np.vstack((found, found[names.index("trust")] - found[names.index(RIVAL)]))

    value = all_rhos(by_layer, by_context)
    drawn = np.stack(
        [
            all_rhos(
                [random.choice(part, len(part)) for part in by_layer],
                [random.choice(part, len(part)) for part in by_context],
            )
            for _ in range(samples)
        ]
    )
    low, high = np.percentile(drawn, (5, 95), axis=0)
    return {
        name: {
            scope: Correlation(float(value[i, j]), float(low[i, j]), float(high[i, j]))
            for j, scope in enumerate((*SCOPES, *known))
        }
        for i, name in enumerate((*names, f"trust - {RIVAL}"))
    }


def coverage(statistics: Statistics, tables: Sequence[ScoreTable], keys: Sequence[ExpertKey]) -> list[Coverage]:
    """Do the run's 90% intervals hold what the other texts say?

    Both are estimates: with z the log-odds of trust and r half the width of its interval in log-odds, an interval holds
    if |z_run - z_other| <= sqrt(r_run^2 + r_other^2).
    """
    others = {name: in_order(tables, keys, name) for name in ("trust", "trust_low", "trust_high")}
    found = []
    for context in [*(c for c in statistics if c != ALL), ALL]:
        if context not in others["trust"]:
            continue
        run = [_log_odds(statistics[context][name]) for name in ("trust", "trust_low", "trust_high")]
        other = [_log_odds(others[name][context]) for name in ("trust", "trust_low", "trust_high")]
        reach = np.hypot((run[2] - run[1]) / 2, (other[2] - other[1]) / 2)
        gap = run[0] - other[0]
        found.append(
            Coverage(
                context, float((abs(gap) <= reach).mean()), float((gap > reach).mean()), float((gap < -reach).mean())
            )
        )
    return found


def validation_rows(
    found: dict[str, dict[str, Correlation]], covered: Sequence[Coverage], ablation: Ablation
) -> list[ValidationRow]:
    """The result as the record keeps it."""
    experts, texts = len(ablation.keys), len(ablation.contexts)

    def row(statistic: str, scope: str, rho: Correlation) -> ValidationRow:
        return ValidationRow(
            statistic=statistic,
            scope=scope,
            rho=rho.value,
            low=rho.low,
            high=rho.high,
            n=experts,
            texts=ablation.contexts.count(scope) if scope in ablation.contexts else texts,
            definition_version=DEFINITION_VERSION,
        )

    rows = [row(name, scope, rho) for name, by_scope in found.items() for scope, rho in by_scope.items()]
    return rows + [row(COVERAGE, c.context, Correlation(c.share, c.share, c.share)) for c in covered]


def spearman(x: Array, y: Array) -> float:
    """Rank correlation; ties take their mean rank.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    ranks_x, ranks_y = rankdata(x), rankdata(y)
    if np.ptp(ranks_x) == 0 or np.ptp(ranks_y) == 0:
        return 0.0
    return round(float(np.corrcoef(ranks_x, ranks_y)[0, 1]), 12)


def _log_odds(share: Array) -> Array:
    clipped = np.clip(share, 1e-12, 1 - 1e-12)
    odds: Array = np.log(clipped / (1 - clipped))
    return odds
