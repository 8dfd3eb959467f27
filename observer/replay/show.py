"""Replays and plans on paper: tables and curves for a terminal, a chart, and plain values. Nothing is computed anew."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import altair as alt
from rich.console import Console
from rich.table import Table

from observer.replay.cost import Cost
from observer.replay.plan import Plan
from observer.replay.regret import Regret, regret, trust_of
from observer.replay.sources import RunTrace
from observer.replay.sweep import BELADY, Setting, run_one
from observer.replay.trace import Trace
from segmoe.events import ExpertKey
from segmoe.policies import DEFAULT_POLICY
from segmoe.units import format_bytes

BARS = " ▁▂▃▄▅▆▇█"
WIDTH = 110  # below it the tables break their cells
COMPLETE = 1 - 1e-9


def describe(trace: Trace, of_run: RunTrace | None) -> dict[str, Any]:
    """What was replayed, and whether it is all of the run."""
    known: dict[str, Any] = {
        "accesses": len(trace),
        "passes": len(trace.tokens),
        "decode_passes": int(trace.is_decode.sum()),
        "tokens": int(trace.tokens.sum()),
        "experts": len(trace.keys),
        "per_pass": trace.cycle,
    }
    if of_run is not None:
        known |= {"run": of_run.run["name"], "share_of_run": of_run.share}
    return known


def judge(
    trace: Trace,
    of_run: RunTrace | None,
    trust: Mapping[ExpertKey, float] | None,
    costs: Sequence[Cost],
    bytes_per_s: float,
) -> list[tuple[str, Regret]]:
    """The evictions of the run's policy and budget (else the default's, at the first budget), by score and by trust."""
    own = Setting(DEFAULT_POLICY, costs[0].experts) if of_run is None else of_run.own
    policy, experts = own.policy, own.experts
    outcome = run_one(trace, *own, trust=trust)
    found = [
        (
            f"score of {policy}, {experts} experts",
            regret(trace, outcome, outcome.score, experts=experts, bytes_per_s=bytes_per_s),
        )
    ]
    if trust:
        by_trust = regret(trace, outcome, trust_of(trace, outcome, trust), experts=experts, bytes_per_s=bytes_per_s)
        found.append((f"trust, under {policy}, {experts} experts", by_trust))
    return found


def curves(costs: Iterable[Cost]) -> list[dict[str, str | int | float]]:
    """Points of the curves of miss ratios."""
    names = ("policy", "experts", "miss_ratio", "low", "high")
    return [{name: getattr(cost, name) for name in names} for cost in costs]


def overall(costs: Sequence[Cost]) -> list[Cost]:
    """Those of all passes together."""
    return [cost for cost in costs if cost.phase == costs[0].phase]


def chart(points: list[dict[str, str | int | float]]) -> str:
    """The curves as Vega-Lite, which the dashboard draws."""
    drawn = (
        alt.Chart(alt.InlineData(values=points))
        .mark_line(point=True)
        .encode(
            x=alt.X("experts:Q", title="experts in memory"),
            y=alt.Y("miss_ratio:Q", title="miss ratio", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("policy:N", title="policy"),
            tooltip=["policy:N", "experts:Q", alt.Tooltip("miss_ratio:Q", format=".3f")],
        )
        .properties(title="Miss ratio by policy and budget", width=640, height=360)
    )
    return json.dumps(drawn.to_dict())


def print_costs(trace: Trace, of_run: RunTrace | None, costs: Sequence[Cost], soon: int, bytes_per_s: float) -> None:
    """A row for each policy and budget, of all passes together."""
    table = Table("policy", "experts", "hit rate", "misses", "read", "seconds", "evictions", f"back in {soon} tokens")
    last = ""
    for cost in overall(costs):
        if last and cost.policy != last:
            table.add_section()
        last = cost.policy
        table.add_row(
            "Belady (ceiling)" if cost.policy == BELADY else cost.policy,
            f"{'the run: ' if cost.is_own else ''}{cost.experts:,}",
            f"{1 - cost.miss_ratio:.3f}",
            f"{cost.misses:,}",
            format_bytes(cost.bytes_read),
            f"{cost.seconds:,.1f}",
            f"{cost.evictions:,}",
            f"{cost.reloads_soon / max(cost.evictions, 1):.1%}",
        )
    _console().print(_headline(trace, of_run), table, f"Seconds are at {format_bytes(round(bytes_per_s))} a second.")


def print_regret(judged: list[tuple[str, Regret]]) -> None:
    """A table for each value that evictions were judged by."""
    for by, found in judged:
        if not found.groups:
            _console().print(f"No eviction to judge by {by}.")
            continue
        columns = (
            "from .. to",
            "evictions",
            "came back",
            "after tokens",
            "paid",
            "ms",
            "Belady kept it",
            "90% interval",
        )
        table = Table(*columns, title=f"Evictions by {by}", title_justify="left")
        for group in found.groups:
            table.add_row(
                f"{group.low:.3g} .. {group.high:.3g}",
                f"{group.evictions:,}",
                f"{group.reloaded / max(group.evictions, 1):.0%}",
                f"{group.tokens_median:,.0f}",
                format_bytes(group.bytes_paid),
                f"{group.milliseconds_paid:,.0f}",
                f"{group.regretted:.1%}",
                f"{group.regretted_low:.1%} .. {group.regretted_high:.1%}",
            )
        _console().print(
            table,
            f"highest less lowest: {found.difference:+.1%} [{found.difference_low:+.1%}, {found.difference_high:+.1%}]",
        )


def print_plans(
    trace: Trace,
    of_run: RunTrace | None,
    hit_rate: float,
    plans: list[Plan],
    pins: list[tuple[ExpertKey, float]],
    points: list[dict[str, str | int | float]],
) -> None:
    """The plans, the curves as rows of bars, and whom to pin."""
    table = Table("policy", "experts", "memory", "hit rate", "90% interval", "miss ratio, 1 expert .. all")
    for one in plans:
        ratios = [float(point["miss_ratio"]) for point in points if point["policy"] == one.policy]
        table.add_row(
            "Belady (floor)" if one.policy == BELADY else one.policy,
            f"{one.experts:,}",
            format_bytes(one.nbytes),
            f"{one.hit_rate:.3f}",
            f"{one.low:.3f} .. {one.high:.3f}",
            "".join(BARS[round(ratio * (len(BARS) - 1))] for ratio in ratios),
        )
    best = next((one for one in plans if one.policy != BELADY), plans[0])
    _console().print(
        _headline(trace, of_run),
        table,
        f"For a hit rate of {hit_rate:.3f}: {best.experts:,} experts ({format_bytes(best.nbytes)}) with {best.policy}.",
    )
    if pins:
        names = ", ".join(f"{key.component} layer {key.layer} expert {key.expert} ({share:.0%})" for key, share in pins)
        _console().print(f"Used by nearly every pass, worth a pin: {names}")
    else:
        _console().print("No expert is used by nine passes of ten: nothing is worth a pin.")


def _headline(trace: Trace, of_run: RunTrace | None) -> str:
    text = (
        f"{len(trace):,} accesses in {len(trace.tokens):,} passes ({int(trace.is_decode.sum()):,} decode), "
        f"{trace.cycle:,.1f} experts a pass of {len(trace.keys):,}"
    )
    if of_run is not None and of_run.share < COMPLETE:
        text += (
            f"\nThe trace holds {of_run.share:.1%} of the accesses of run {of_run.run['name']}: figures are of these"
        )
    return text


def _console() -> Console:
    console = Console(highlight=False)
    console.width = max(console.width, WIDTH)
    return console
