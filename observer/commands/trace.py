"""`observer trace`: what to do with the raw route trace. Reading it is trace_read.py one level up."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import click

from observer.commands.common import db_option, expected_failures, opened


@click.group()
def trace() -> None:
    """Use the raw route trace that a run keeps with --trace."""


@trace.command()
@db_option
@click.option("--run", help="Name of the run.  [default: the last one with a trace]")
@click.option("--out", type=click.File("w", encoding="utf-8"), default="-", help="The CSV file.  [default: stdout]")
@expected_failures
def export(db: Path, run: str | None, out: TextIO) -> None:
    """Write a run's route trace as the CSV that route-trace tools read, a line a pick."""
    from observer.trace_read import open_trace, write_csv

    with opened(db) as engine:
        write_csv(open_trace(engine, run), out)
