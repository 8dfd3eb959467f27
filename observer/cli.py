"""The `observer` command: options in, exit codes out. What it does is in the modules that it calls."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TextIO, TypeVar

import click

from observer.errors import ObserverError
from segmoe.embedded import CORPUS, MODEL, VALIDATION
from segmoe.errors import SegmoeError

P = ParamSpec("P")
R = TypeVar("R")
INTERRUPTED = 130
DB = Path("observer.db")

db_option = click.option("--db", type=click.Path(path_type=Path), default=DB, show_default=True, help="The record.")


def expected_failures(command: Callable[P, R]) -> Callable[P, R]:
    """Print one line and exit with 1 for what is expected to go wrong; a bug keeps its traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (SegmoeError, ObserverError) as error:
            click.echo(f"observer: {' '.join(str(error).split())}", err=True)
            sys.exit(1)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    return run


@click.group(context_settings={"auto_envvar_prefix": "OBSERVER", "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="segmoe")
def main() -> None:
    """Learn which experts of a Mixture-of-Experts model to rely on."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


@main.command()
@click.option(
    "--model", type=click.Path(path_type=Path), default=MODEL, help="A checkpoint; without it the embedded one."
)
@click.option("--corpus", type=click.Path(path_type=Path), default=CORPUS, help="JSONL texts; without it the embedded.")
@db_option
@click.option("--experts", type=click.IntRange(min=1), help="Experts in memory at most.  [default: a quarter of them]")
@click.option("--budget", help="Memory for experts, such as 4GiB, instead of --experts.")
@click.option("--policy", default="lru", show_default=True, help="Who leaves memory first.")
@click.option("--run", help="Name of the run.  [default: made from the time]")
@click.option(
    "--generate", type=click.IntRange(min=0), default=0, help="Then continue the first texts by so many tokens."
)
@click.option("--generate-texts", type=click.IntRange(min=1), default=32, show_default=True, help="Texts to continue.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Texts a scoring pass.")
@click.option("--max-tokens", type=click.IntRange(min=2), default=256, show_default=True, help="Of a text; cut there.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first texts of the corpus.")
@click.option("--keep-text", is_flag=True, help="Store the texts in the record.")
@click.option("--no-verify", is_flag=True, help="Do not compare with the stock model first.")
@expected_failures
def run(
    model: Path,
    corpus: Path,
    db: Path,
    experts: int | None,
    budget: str | None,
    policy: str,
    run: str | None,
    generate: int,
    generate_texts: int,
    batch: int,
    max_tokens: int,
    limit: int | None,
    keep_text: bool,
    no_verify: bool,
) -> None:
    """Run a model on a corpus and record how far each expert can be relied on."""
    if experts is not None and budget is not None:
        raise click.UsageError("give --experts or --budget, not both")
    from observer.job import JobConfig, run_job
    from observer.progress import JobProgress

    config = JobConfig(
        model=model,
        corpus=corpus,
        db=db,
        experts=experts,
        budget=budget,
        policy=policy,
        run=run,
        generate=generate,
        generate_texts=generate_texts,
        batch=batch,
        max_tokens=max_tokens,
        limit=limit,
        keep_text=keep_text,
        verify=not no_verify,
    )
    result = run_job(config, JobProgress())
    _report(db, result.run)
    sys.exit(INTERRUPTED if result.status == "cancelled" else 0)


@main.command()
@db_option
@click.option("--run", help="Name of the run.  [default: the last one]")
@expected_failures
def report(db: Path, run: str | None) -> None:
    """Print the report of a run from the record."""
    _report(db, run)


@main.command()
@db_option
@click.option("--run", help="Name of the run.  [default: the last one]")
@click.option("--texts", type=click.Path(path_type=Path), default=VALIDATION, help="JSONL that the run has not scored.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many of these texts, spread over all of them.")
@click.option("--experts", type=click.IntRange(min=2), help="Only so many experts, spread over layers and impact.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of finished work.  [default: ~/.cache/segmoe]")
@expected_failures
def validate(
    db: Path, run: str | None, texts: Path, limit: int | None, experts: int | None, cache: Path | None
) -> None:
    """Remove each expert in turn and see whether the run's trust foretold what that costs."""
    from observer import validate_report
    from observer.ablation import default_cache
    from observer.corpus import read_corpus
    from observer.db.session import open_db
    from observer.progress import JobProgress

    chosen = read_corpus(texts)
    chosen = chosen if limit is None else validate_report.spread(chosen, limit)
    engine = open_db(db, create=False)
    try:
        with JobProgress() as progress:
            validate_report.validate(
                engine, run, chosen, experts=experts, cache=cache or default_cache(), progress=progress.count
            )
    finally:
        engine.dispose()


@main.group()
def db() -> None:
    """Look after the record."""


@db.command()
@db_option
@expected_failures
def upgrade(db: Path) -> None:
    """Bring a record that an earlier version wrote up to date; jobs do this by themselves."""
    from observer.db.session import open_db

    open_db(db, create=False).dispose()
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


@main.group()
def trace() -> None:
    """Use the raw route trace that a run keeps with --trace."""


@trace.command("export")
@db_option
@click.option("--run", help="Name of the run.  [default: the last one with a trace]")
@click.option("--out", type=click.File("w", encoding="utf-8"), default="-", help="The CSV file.  [default: stdout]")
@expected_failures
def export_trace(db: Path, run: str | None, out: TextIO) -> None:
    """Write a run's route trace as the CSV that route-trace tools read, a line a pick."""
    from observer.db.session import open_db
    from observer.trace_read import open_trace, write_csv

    engine = open_db(db, create=False)
    try:
        write_csv(open_trace(engine, run), out)
    finally:
        engine.dispose()


def _report(db: Path, run: str | None) -> None:
    from observer.db.session import open_db
    from observer.report import print_report, read_report

    engine = open_db(db, create=False)
    try:
        print_report(read_report(engine, run), db)
    finally:
        engine.dispose()
