"""What acting on a run would gain: experts to pin, to drop, to prefetch, and a budget. Changes nothing.

Everything is read from the record; nothing is run. Each piece of advice says what it rests on, with an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, Engine

from observer.db.session import reading
from observer.errors import ObserverError
from observer.observation import ALL
from observer.report import evidence, read_report
from observer.stats.windows import WINDOW_TOKENS
from segmoe.events import ExpertKey
from segmoe.units import format_bytes

SURE_Z = 1.645
"""Two-sided 90%."""

SHOWN = 10


class Share(NamedTuple):
    """A share with its 90% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


class Pair(NamedTuple):
    """Reading `after` when `before` is picked: how often it is then needed."""

    before: ExpertKey
    after: ExpertKey
    probability: Share
    lift: float


class Advice(NamedTuple):
    """What the record says; experts and shares are of the whole run."""

    run: str
    budget_experts: int
    experts: int
    token_cycle: int  # experts that one token needs at least
    pins: list[ExpertKey]  # as many as the budget holds, most picked first
    pinned_share: Share  # of picks that they would have met, from window to window
    drops: list[ExpertKey]  # trust surely below the bound in every context
    dropped_impact: float  # share of all impact that is theirs
    prefetch: list[Pair]
    budgets: list[tuple[float, int, Share]]  # wanted share of picks, experts to pin, share of picks met
    expert_bytes: int  # of the largest
    evidence: str  # the events that all of this rests on, and those that were lost


def advise(
    engine: Engine, run: str | None = None, *, wanted: Sequence[float] = (0.5, 0.8, 0.9), bound: float = 0.1
) -> Advice:
    """Read the advice for a run; `bound` is the trust below which an expert may be dropped."""
    if not 0 <= bound <= 1:
        raise ObserverError(f"the bound is {bound}, and trust lies between 0 and 1; give one of these")
    shown = read_report(engine, run).run
    run_id, budget = int(shown["run_id"]), int(shown["budget_experts"])
    with reading(engine).begin() as connection:
        keys, uses = _uses(connection, run_id)
        if not uses.any():
            raise ObserverError(
                f"run {shown['name']!r} holds no picks by score window (it has just begun, or they were pruned); "
                "take another run with --run"
            )
        total = uses.sum(axis=0)
        order = np.argsort(-total, kind="stable")
        pins = order[: min(budget, len(keys))]
        budgets = [
            (share, count, _met(uses, order[:count])) for share in wanted if (count := _enough(total[order], share))
        ]
        drops, impact = _drops(connection, run_id, bound)
        return Advice(
            run=str(shown["name"]),
            budget_experts=budget,
            experts=len(keys),
            token_cycle=_token_cycle(connection, run_id),
            pins=[keys[place] for place in pins],
            pinned_share=_met(uses, pins),
            drops=drops,
            dropped_impact=impact,
            prefetch=_prefetch(connection, run_id),
            budgets=budgets,
            expert_bytes=_largest(connection, run_id),
            evidence=evidence(shown),
        )


def wilson(hits: float, trials: float, z: float = SURE_Z) -> Share:
    """Share of hits with the interval of Wilson (1927).

    >>> [round(x, 3) for x in wilson(8, 10)]
    [0.8, 0.541, 0.931]
    """
    if trials <= 0:
        return Share(0.0, 0.0, 1.0)
    p = hits / trials
    middle, spread = p + z * z / (2 * trials), z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials**2))
    scale = 1 + z * z / trials
    return Share(p, max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale))


def _uses(connection: Connection, run_id: int) -> tuple[list[ExpertKey], np.ndarray]:
    """Experts, and their picks by score window, [window, expert]."""
    rows = connection.exec_driver_sql(
        "SELECT component, layer, expert, window_index, uses FROM v_expert_window WHERE run_id = ? ORDER BY 1, 2, 3, 4",
        (run_id,),
    ).fetchall()
    keys = list(dict.fromkeys(ExpertKey(*row[:3]) for row in rows))
    return keys, np.array([row[4] for row in rows], np.float64).reshape(len(keys), -1).T if rows else np.zeros((0, 0))


def _met(uses: np.ndarray, chosen: np.ndarray) -> Share:
    """Share of picks that the chosen experts got; the interval is of its mean over score windows."""
    total = uses.sum(axis=1)
    if not total.any():
        return Share(0.0, 0.0, 1.0)
    by_window = (uses[:, chosen].sum(axis=1) / np.maximum(total, 1))[total > 0]
    value = float(uses[:, chosen].sum() / total.sum())
    reach = SURE_Z * float(by_window.std(ddof=1)) / math.sqrt(len(by_window)) if len(by_window) > 1 else 1.0
    return Share(value, max(0.0, value - reach), min(1.0, value + reach))


def _enough(ordered: np.ndarray, share: float) -> int:
    """How many of the most picked experts get this share of all picks."""
    return int(np.searchsorted(ordered.cumsum(), share * ordered.sum()) + 1) if ordered.sum() else 0


def _drops(connection: Connection, run_id: int, bound: float) -> tuple[list[ExpertKey], float]:
    """Experts whose interval of trust ends below the bound in every context, and their share of all impact."""
    rows = connection.exec_driver_sql(
        "SELECT component, layer, expert, MAX(trust_high), SUM(CASE WHEN context = ? THEN impact_mean ELSE 0 END) "
        "FROM v_expert_trust WHERE run_id = ? GROUP BY 1, 2, 3 ORDER BY 4, 1, 2, 3",
        (ALL, run_id),
    ).fetchall()
    total = sum(row[4] for row in rows)
    safe = [row for row in rows if row[3] < bound]
    return [ExpertKey(*row[:3]) for row in safe], sum(row[4] for row in safe) / total if total else 0.0


def _prefetch(connection: Connection, run_id: int) -> list[Pair]:
    """Pairs from one layer to the next, the surest first: P(after | before) by its lower bound.

    Tokens of one text are alike: for the interval, 32 of them count as one.
    """
    uses = {
        ExpertKey(*row[:3]): float(row[3])
        for row in connection.exec_driver_sql(
            "SELECT component, layer, expert, uses FROM v_expert_trust WHERE run_id = ? AND context = ?", (run_id, ALL)
        )
    }
    rows = connection.exec_driver_sql(
        "SELECT component, layer, expert, other_layer, other_expert, count, lift FROM v_coactivation "
        "WHERE run_id = ? AND other_layer > layer AND lift > 1",
        (run_id,),
    ).fetchall()
    pairs = []
    for component, layer, expert, other_layer, other, count, lift in rows:
        before, after = ExpertKey(component, layer, expert), ExpertKey(component, other_layer, other)
        trials = max(uses[before], count)
        pairs.append(Pair(before, after, wilson(count / WINDOW_TOKENS, trials / WINDOW_TOKENS), lift))
    return sorted(pairs, key=lambda pair: (-pair.probability.low, pair.before, pair.after))


def _token_cycle(connection: Connection, run_id: int) -> int:
    """Experts that one token needs: in each layer, picks per token."""
    rows = connection.exec_driver_sql(
        "SELECT component, layer, SUM(uses) FROM v_expert_trust WHERE run_id = ? AND context = ? GROUP BY 1, 2",
        (run_id, ALL),
    ).fetchall()
    tokens = connection.exec_driver_sql("SELECT SUM(tokens) FROM v_sequence WHERE run_id = ?", (run_id,)).scalar()
    return round(sum(row[2] for row in rows) / tokens) if tokens else 0


def _largest(connection: Connection, run_id: int) -> int:
    """Bytes of the largest expert."""
    return int(connection.exec_driver_sql("SELECT MAX(bytes) FROM v_expert WHERE run_id = ?", (run_id,)).scalar() or 0)


def print_advice(advice: Advice, console: Console | None = None) -> None:
    """Print the advice for people."""
    console = Console() if console is None else console
    console.width = max(console.width, 110)

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(f"Run {advice.run}: what acting would gain. Nothing is changed; shares are of picks, with 90% intervals.")
    if advice.budget_experts < advice.token_cycle:
        say(f"The budget of {advice.budget_experts:,} is below one token cycle of {advice.token_cycle:,} experts.")
    say(
        f"Pin: the {len(advice.pins):,} most picked of {advice.experts:,} experts fill the budget and meet "
        f"{advice.pinned_share} of all picks."
    )
    say(
        f"Drop: {len(advice.drops):,} experts are surely trusted little in every context; {advice.dropped_impact:.2%} "
        f"of all impact is theirs: {_names(advice.drops)}"
    )
    table = Table("picks to meet", "experts to pin", "memory", "picks met")
    for share, count, met in advice.budgets:
        table.add_row(f"{share:.0%}", f"{count:,}", format_bytes(count * advice.expert_bytes), str(met))
    console.print(table)
    pairs = Table("when picked", "read", "needed then", "lift")
    for pair in advice.prefetch[:SHOWN]:
        pairs.add_row(_name(pair.before), _name(pair.after), str(pair.probability), f"{pair.lift:.1f}")
    console.print(pairs)
    say(advice.evidence)


def _name(key: ExpertKey) -> str:
    return f"{key.component} {key.layer}/{key.expert}"


def _names(keys: Sequence[ExpertKey]) -> str:
    more = f" and {len(keys) - SHOWN:,} more" if len(keys) > SHOWN else ""
    return (", ".join(map(_name, keys[:SHOWN])) or "none") + more
