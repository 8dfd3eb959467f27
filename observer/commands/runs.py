"""`observer runs`: what is in the record, and looking after it. What is done is runs.py one level up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from observer.commands.common import db_option, expected_failures, json_option, opened

if TYPE_CHECKING:
    from observer.runs import Comparison

SHOWN_CHANGES = 10
FIGURES = ("status", "sequences", "tokens", "nll", "hits", "misses", "bytes_read", "parity", "events_dropped")


@click.group()
def runs() -> None:
    """List, show, close, delete and compare runs."""


@runs.command("list")
@db_option
@json_option
@expected_failures
def list_(db: Path, as_json: bool) -> None:
    """List the runs of a record, the first one first."""
    from observer.runs import is_live, list_runs

    with opened(db) as engine:
        found = list_runs(engine)
        if not found:
            click.echo(f"{db} holds no runs; make one with `observer run`", err=True)
        for run in found:
            facts = dict(run) | {"is_live": run["status"] == "started" and is_live(db, run["run_id"])}
            if as_json:
                click.echo(json.dumps(facts))
            else:
                going = " (going on)" if facts["is_live"] else " (killed)" if run["status"] == "started" else ""
                of = f" of {run['sequences_planned']:,}" if run["sequences_planned"] else ""
                click.echo(
                    f"{run['name']}: {run['status']}{going}, {run['sequences']:,}{of} texts, {run['tokens']:,} tokens, "
                    f"started {run['started_at'][:19]}"
                )


@runs.command()
@click.argument("name", required=False)
@db_option
@expected_failures
def show(name: str | None, db: Path) -> None:
    """Print all that the record says of a run, by default the last one, as JSON."""
    from observer.runs import find_run

    with opened(db) as engine:
        run = dict(find_run(engine, name))
    for column in ("config", "versions", "verdict", "drops"):
        run[column] = json.loads(run[column])
    click.echo(json.dumps(run, indent=2))


@runs.command()
@click.argument("name")
@db_option
@expected_failures
def recover(name: str, db: Path) -> None:
    """Close a run whose job was killed. It can still go on: `observer run --run NAME` with the same settings."""
    from observer.runs import recover as close

    with opened(db) as engine:
        closed = close(engine, name)
    click.echo(f"{name} is closed as an error at its last heartbeat" if closed else f"{name} was closed already")


@runs.command()
@click.argument("name")
@db_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@expected_failures
def delete(name: str, db: Path, yes: bool) -> None:
    """Delete a run with all its rows and its trace. The file keeps its size: `observer db prune` gives room back."""
    from observer.runs import delete as remove
    from observer.runs import find_run

    with opened(db) as engine:
        run = find_run(engine, name)
        if not yes:
            click.confirm(f"Delete run {name} ({run['tokens']:,} tokens)?", abort=True, err=True)
        remove(engine, name)
    click.echo(f"{name} is deleted")


@runs.command()
@click.argument("first")
@click.argument("second")
@db_option
@json_option
@expected_failures
def compare(first: str, second: str, db: Path, as_json: bool) -> None:
    """Set two runs side by side: settings, figures, and whose trust changed."""
    from observer.runs import compare as set_side_by_side

    with opened(db) as engine:
        found = set_side_by_side(engine, first, second)
    if as_json:
        click.echo(json.dumps(_as_dict(found)))
        return
    a, b = found.runs
    for line in found.settings or ["the same checkpoint, texts and settings"]:
        click.echo(line)
    for name in FIGURES:
        if a[name] != b[name]:
            click.echo(f"{name}: {_figure(a[name])} and {_figure(b[name])}")
    apart = sum(change.apart for change in found.changes)
    click.echo(f"trust of {found.experts:,} experts that both have: {apart:,} have intervals that do not overlap")
    for change in found.changes[:SHOWN_CHANGES]:
        if change.before != change.after:
            click.echo(
                f"  {change.component} layer {change.layer} expert {change.expert}: {change.before:.3f} and "
                f"{change.after:.3f}{', intervals apart' if change.apart else ''}"
            )


def _as_dict(found: Comparison) -> dict[str, Any]:
    return {
        "runs": [{name: run[name] for name in ("name", *FIGURES)} for run in found.runs],
        "settings": found.settings,
        "experts": found.experts,
        "changes": [change._asdict() for change in found.changes],
    }


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
