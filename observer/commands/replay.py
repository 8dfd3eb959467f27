"""`observer replay` and `observer plan`: what other policies and budgets would have cost. The work is in replay/."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from observer.commands.common import db_option, expected_failures, json_option, opened

if TYPE_CHECKING:
    from observer.replay.cost import Cost
    from observer.replay.sources import RunTrace
    from observer.replay.sweep import Setting
    from observer.replay.trace import Trace
    from segmoe.events import ExpertKey

GIGA = 1e9
ANY = "all"

trace_option = click.option(
    "--trace", "path", type=click.Path(path_type=Path), help="A route trace: CSV, Parquet, or a run's trace folder."
)
run_option = click.option("--run", help="Name of the run.  [default: the last one with a trace]")
policy_option = click.option("--policy", "policies", multiple=True, help="Only these; `belady` too.  [default: all]")
phase_option = click.option(
    "--phase", type=click.Choice(["all", "decode", "prefill"]), default="all", show_default=True, help="Which passes."
)


rate_option = click.option(
    "--rate", type=click.FloatRange(min=0.001), help="Disk, GB/s.  [default: as the run's loads measured it, or 1]"
)
store_option = click.option(
    "--store/--no-store", default=True, show_default=True, help="Keep what a run's whole trace gave, in v_what_if."
)


@click.command()
@db_option
@run_option
@trace_option
@policy_option
@phase_option
@click.option("--experts", type=click.IntRange(min=1), multiple=True, help="Budgets.  [default: shares of all experts]")
@rate_option
@click.option("--soon", type=click.IntRange(min=0), default=16, show_default=True, help="Tokens that are soon.")
@click.option("--regret", is_flag=True, help="Also judge the evictions of the run's policy by trust and by its score.")
@store_option
@json_option
@expected_failures
def replay(
    db: Path,
    run: str | None,
    path: Path | None,
    policies: tuple[str, ...],
    phase: str,
    experts: tuple[int, ...],
    rate: float | None,
    soon: int,
    regret: bool,
    store: bool,
    as_json: bool,
) -> None:
    """Replay a recorded trace under every policy and budget, and print what each would have cost."""
    from observer.replay import show
    from observer.replay.sweep import default_budgets, default_policies, grid, sweep

    source = _read(db, run, path, phase, rate)
    trace, of_run, own = source.trace, source.of_run, source.own
    settings = grid(policies or default_policies(source.trust, own), experts or default_budgets(trace, own), own)
    costs = sweep(trace, settings, soon_tokens=soon, **source.terms)
    judged = show.judge(trace, of_run, source.trust, costs, source.bytes_per_s) if regret else []
    if as_json:
        answer: dict[str, Any] = {
            "trace": show.describe(trace, of_run),
            "bytes_per_s": source.bytes_per_s,
            "costs": [asdict(cost) for cost in costs],
        }
        if regret:
            answer["regret"] = [{"by": by, **asdict(found)} for by, found in judged]
        click.echo(json.dumps(answer))
    else:
        show.print_costs(trace, of_run, costs, soon, source.bytes_per_s)
        show.print_regret(judged)
    if store:
        _store(db, source, costs, soon)


@click.command()
@db_option
@run_option
@trace_option
@policy_option
@phase_option
@click.option(
    "--hit-rate", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True, help="To reach."
)
@rate_option
@click.option("--chart", type=click.Path(path_type=Path), help="Also write the curves as a Vega-Lite chart (JSON).")
@store_option
@json_option
@expected_failures
def plan(
    db: Path,
    run: str | None,
    path: Path | None,
    policies: tuple[str, ...],
    phase: str,
    hit_rate: float,
    rate: float | None,
    chart: Path | None,
    store: bool,
    as_json: bool,
) -> None:
    """Find the smallest budget, and the best policy for it, that reaches a hit rate on a recorded trace."""
    from observer.replay import show
    from observer.replay.plan import plan as find
    from observer.replay.plan import worth_a_pin
    from observer.replay.sweep import SOON_TOKENS, curve_budgets, default_policies, grid, sweep

    source = _read(db, run, path, phase, rate)
    trace, own = source.trace, source.own
    names = policies or default_policies(source.trust, own)
    costs = sweep(trace, grid(names, curve_budgets(trace, own), own), **source.terms)
    if store:  # before the plan, which there may be none of
        _store(db, source, costs, SOON_TOKENS)
    curves = show.curves(show.overall(costs))
    if chart is not None:
        chart.write_text(show.chart(curves))
    found = find(trace, hit_rate, names, source.trust)
    pins = worth_a_pin(trace)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "trace": show.describe(trace, source.of_run),
                    "hit_rate": hit_rate,
                    "plans": [asdict(one) for one in found],
                    "pin": [{**key._asdict(), "share": share} for key, share in pins],
                    "curves": curves,
                }
            )
        )
    else:
        show.print_plans(trace, source.of_run, hit_rate, found, pins, curves)


class _Source(NamedTuple):
    """What is to be replayed."""

    trace: Trace
    phase: str
    bytes_per_s: float
    of_run: RunTrace | None

    @property
    def own(self) -> Setting | None:
        """The policy and the budget that the run had."""
        return None if self.of_run is None else self.of_run.own

    @property
    def trust(self) -> dict[ExpertKey, float] | None:
        """What policies that use trust know."""
        return None if self.of_run is None else self.of_run.trust

    @property
    def terms(self) -> dict[str, Any]:
        """Arguments of a sweep."""
        import numpy as np

        counted = None if self.phase == ANY else {self.phase: np.ones(len(self.trace.tokens), np.bool_)}
        return {"bytes_per_s": self.bytes_per_s, "trust": self.trust, "own": self.own, "counted": counted}


def _read(db: Path, run: str | None, path: Path | None, phase: str, rate: float | None) -> _Source:
    from observer.errors import ObserverError
    from observer.replay.sources import read_file, read_run

    if path is not None and run is not None:
        raise click.UsageError("give --run or --trace, not both")
    if path is not None:
        trace, of_run = read_file(path), None
    else:
        with opened(db) as engine:
            of_run = read_run(engine, run)
        trace = of_run.trace
    if phase != ANY:
        trace = trace.only(trace.is_decode == (phase == "decode"))
        if not len(trace):
            raise ObserverError(f"the trace holds no {phase} pass; take --phase all")
    measured = GIGA if of_run is None or of_run.bytes_per_s is None else of_run.bytes_per_s
    return _Source(trace, phase, measured if rate is None else rate * GIGA, of_run)


def _store(db: Path, source: _Source, costs: list[Cost], soon_tokens: int) -> None:
    """Keep the costs in the record, unless they are of a file or of a part of a run."""
    from observer.db.writer import write_what_if
    from observer.rows import WhatIfRow

    if source.of_run is None or source.phase != ANY:
        return
    rows = [
        WhatIfRow(
            phase=cost.phase,
            policy=cost.policy,
            budget_experts=cost.experts,
            budget_bytes=cost.nbytes,
            is_own=int(cost.is_own),
            accesses=cost.accesses,
            misses=cost.misses,
            miss_ratio_low=cost.low,
            miss_ratio_high=cost.high,
            bytes_read=cost.bytes_read,
            evictions=cost.evictions,
            reloads_soon=cost.reloads_soon,
            soon_tokens=soon_tokens,
        )
        for cost in costs
    ]
    with opened(db) as engine:
        write_what_if(engine, source.of_run.run["run_id"], rows, bytes_per_s=source.bytes_per_s)
