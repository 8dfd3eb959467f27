"""`observer replay` and `observer plan`: what other policies and budgets would have cost. The work is in replay/."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from observer.commands.common import db_option, expected_failures, json_option, opened

if TYPE_CHECKING:
    from observer.replay.sources import RunTrace
    from observer.replay.trace import Trace
    from segmoe.events import ExpertKey

GIGA = 10**9

trace_option = click.option(
    "--trace", "path", type=click.Path(path_type=Path), help="A route trace: CSV, Parquet, or a run's trace folder."
)
run_option = click.option("--run", help="Name of the run.  [default: the last one with a trace]")
policy_option = click.option("--policy", "policies", multiple=True, help="Only these; `belady` too.  [default: all]")
phase_option = click.option(
    "--phase", type=click.Choice(["all", "decode", "prefill"]), default="all", show_default=True, help="Which passes."
)


@click.command()
@db_option
@run_option
@trace_option
@policy_option
@phase_option
@click.option("--experts", type=click.IntRange(min=1), multiple=True, help="Budgets.  [default: shares of all experts]")
@click.option("--rate", type=click.FloatRange(min=0.001), default=1.0, show_default=True, help="Disk, GB/s.")
@click.option("--soon", type=click.IntRange(min=0), default=16, show_default=True, help="Tokens that are soon.")
@click.option("--regret", is_flag=True, help="Also judge the evictions of the run's policy by trust and by its score.")
@json_option
@expected_failures
def replay(
    db: Path,
    run: str | None,
    path: Path | None,
    policies: tuple[str, ...],
    phase: str,
    experts: tuple[int, ...],
    rate: float,
    soon: int,
    regret: bool,
    as_json: bool,
) -> None:
    """Replay a recorded trace under every policy and budget, and print what each would have cost."""
    from observer.replay import show
    from observer.replay.sweep import default_budgets, default_policies, sweep

    trace, of_run, trust = _read(db, run, path, phase)
    names = list(policies) or default_policies(trust)
    budgets = list(experts) or default_budgets(trace)
    costs = sweep(trace, names, budgets, bytes_per_s=rate * GIGA, soon_tokens=soon, trust=trust)
    judged = show.judge(trace, of_run, trust, costs, rate * GIGA) if regret else []
    if as_json:
        answer: dict[str, Any] = {"trace": show.describe(trace, of_run), "costs": [asdict(cost) for cost in costs]}
        if regret:
            answer["regret"] = [{"by": by, **asdict(found)} for by, found in judged]
        click.echo(json.dumps(answer))
    else:
        show.print_costs(trace, of_run, costs, soon)
        show.print_regret(judged)


@click.command()
@db_option
@run_option
@trace_option
@policy_option
@phase_option
@click.option(
    "--hit-rate", type=click.FloatRange(0, 1, min_open=True), default=0.9, show_default=True, help="To reach."
)
@click.option("--chart", type=click.Path(path_type=Path), help="Also write the curves as a Vega-Lite chart (JSON).")
@json_option
@expected_failures
def plan(
    db: Path,
    run: str | None,
    path: Path | None,
    policies: tuple[str, ...],
    phase: str,
    hit_rate: float,
    chart: Path | None,
    as_json: bool,
) -> None:
    """Find the smallest budget, and the best policy for it, that reaches a hit rate on a recorded trace."""
    from observer.replay import show
    from observer.replay.plan import plan as find
    from observer.replay.plan import worth_a_pin
    from observer.replay.sweep import default_policies

    trace, of_run, trust = _read(db, run, path, phase)
    names = list(policies) or default_policies(trust)
    found = find(trace, hit_rate, names, trust)
    pins = worth_a_pin(trace)
    curves = show.curves(trace, names, trust)
    if chart is not None:
        chart.write_text(show.chart(curves))
    if as_json:
        click.echo(
            json.dumps(
                {
                    "trace": show.describe(trace, of_run),
                    "hit_rate": hit_rate,
                    "plans": [asdict(one) for one in found],
                    "pin": [{**key._asdict(), "share": share} for key, share in pins],
                    "curves": curves,
                }
            )
        )
    else:
        show.print_plans(trace, of_run, hit_rate, found, pins, curves)


def _read(
    db: Path, run: str | None, path: Path | None, phase: str
) -> tuple[Trace, RunTrace | None, dict[ExpertKey, float] | None]:
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
    if phase != "all":
        trace = trace.only(trace.is_decode == (phase == "decode"))
        if not len(trace):
            raise ObserverError(f"the trace holds no {phase} pass; take --phase all")
    return trace, of_run, None if of_run is None else of_run.trust
