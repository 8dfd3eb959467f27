"""`observer db`: looking after the record. What is done is in the db package."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from observer.commands.common import db_option, expected_failures, opened
from segmoe.units import format_bytes


@click.group()
def db() -> None:
    """Look after the record."""


@db.command()
@db_option
@expected_failures
def upgrade(db: Path) -> None:
    """Bring a record that an earlier version wrote up to date; jobs do this by themselves."""
    with opened(db):
        click.echo(f"{db} is up to date")


@db.command()
@click.option("--db", type=click.Path(path_type=Path), help="A record; without it what this version would make.")
@click.option("--markdown", is_flag=True, help="As tables for a document.")
@expected_failures
def schema(db: Path | None, markdown: bool) -> None:
    """Print the views that readers rely on, with the meaning of each column."""
    from observer.db.schema import markdown as as_markdown
    from observer.db.schema import print_views, views_of

    views = views_of(db)
    if markdown:
        click.echo(as_markdown(views))
    else:
        print_views(views)


@db.command()
@db_option
@click.option("--run", required=True, help="Name of the run.")
@click.option("--windows", type=click.IntRange(min=4), help="Keep at most so many score windows, merged.")
@click.option("--drop", multiple=True, type=click.Choice(
    ["expert-windows", "salience", "residency", "coactivation", "trace", "what-if", "state"]),
    help="Delete these rows; without its state a run cannot go on. May be given several times.")  # fmt: skip
@expected_failures
def prune(db: Path, run: str, windows: int | None, drop: tuple[str, ...]) -> None:
    """Make a run smaller and give the room in the file back. Runs, texts and trust as they stand are always kept."""
    from observer.db.prune import prune as make_smaller
    from observer.db.prune import shrink

    with opened(db) as engine:
        make_smaller(engine, run, windows=windows, drop=drop)
    click.echo(f"{format_bytes(max(0, shrink(db)))} given back")


@db.command("export")
@db_option
@click.option("--parquet", "folder", required=True, type=click.Path(path_type=Path), help="A folder to make.")
@expected_failures
def export_parquet(db: Path, folder: Path) -> None:
    """Write every view as Parquet, one folder a view and run: for DuckDB, pandas and Spark."""
    from observer.db.export import export

    with opened(db) as engine:
        for name, rows in export(engine, folder).items():
            click.echo(f"{name}: {rows:,} rows")


@db.command()
@db_option
@click.argument("name", required=False)
@click.option("--run", help="Name of the run.  [default: the last one]")
@click.option("--other", help="Name of the run to compare it with, where the question compares.")
@click.option("--sql", is_flag=True, help="Print the query instead of its answer.")
@expected_failures
def query(db: Path, name: str | None, run: str | None, other: str | None, sql: bool) -> None:
    """Answer one of the shipped questions as CSV; without a name, list them."""
    from observer.questions import answer, questions

    shipped = questions()
    if name is None:
        for question in shipped.values():
            click.echo(f"{question.name}: {question.title}")
        return
    if name not in shipped:
        raise click.UsageError(f"there is no question {name!r}; there are {', '.join(shipped)}")
    if sql:
        click.echo(shipped[name].sql)
        return
    if shipped[name].compares and other is None:
        raise click.UsageError(f"{name} compares two runs; give the other one with --other")
    with opened(db) as engine:
        answer(engine, shipped[name], run, sys.stdout, other)
