"""The `observer` command: options in, exit codes out. What it does is in the modules that it calls."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from observer import config_file
from observer.commands.common import INCOMPLETE, INTERRUPTED, db_option, expected_failures, opened
from observer.commands.db import db
from observer.commands.replay import plan, replay
from observer.commands.runs import runs
from observer.commands.trace import trace
from observer.residency import EVENTS_CAP
from segmoe.embedded import CORPUS, MODEL, VALIDATION
from segmoe.policies import DEFAULT_POLICY

NEEDS = dict.fromkeys(("trace_every", "trace_cap", "trace_impacts"), "trace")
NEEDS |= {"generate_texts": "generate", "seed": "loop"}
"""Options of a job that are of no effect without another."""


@click.group(context_settings={"auto_envvar_prefix": "OBSERVER", "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="segmoe")
def main() -> None:
    """Learn which experts of a Mixture-of-Experts model to rely on."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")


@main.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    callback=config_file.apply,
    expose_value=False,
    help="TOML file of these settings; flags and environment go before it.",
)
@click.option(
    "--model", type=click.Path(path_type=Path), default=MODEL, help="A checkpoint; without it the embedded one."
)
@click.option(
    "--corpus",
    type=click.Path(path_type=Path),
    default=CORPUS,
    help="JSONL, a folder of .txt files, Parquet, or - for JSONL on stdin; without it the embedded texts.",
)
@db_option
@click.option("--experts", type=click.IntRange(min=1), help="Experts in memory at most.  [default: a quarter of them]")
@click.option("--budget", help="Memory for experts, such as 4GiB, instead of --experts.")
@click.option("--policy", default=DEFAULT_POLICY, show_default=True, help="Who leaves memory first.")
@click.option("--trust-from", help="Name of an earlier run in the record, for policies that rank by trust.")
@click.option("--run", help="Name of the run; an unfinished one goes on.  [default: made from the time]")
@click.option(
    "--generate", type=click.IntRange(min=0), default=0, help="Then continue the first texts by so many tokens."
)
@click.option("--generate-texts", type=click.IntRange(min=1), default=32, show_default=True, help="Texts to continue.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Texts a scoring pass.")
@click.option("--max-tokens", type=click.IntRange(min=2), default=256, show_default=True, help="Of a text; cut there.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first texts of the corpus.")
@click.option("--loop", is_flag=True, help="Observe the corpus again and again, each time in another order.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the orders of --loop.")
@click.option("--total-tokens", type=click.IntRange(min=1), help="Score no further batch after so many tokens.")
@click.option("--time-limit", help="End this start of the job after 90, 90m, 8h, 7d; the same command goes on.")
@click.option("--keep-text", is_flag=True, help="Store the texts in the record.")
@click.option("--no-verify", is_flag=True, help="Do not compare with the stock model first.")
@click.option(
    "--residency-events",
    type=click.IntRange(min=0),
    default=EVENTS_CAP,
    show_default=True,
    help="Loads and evictions to keep one by one.",
)
@click.option("--trace", is_flag=True, help="Keep each token's picks in Parquet files beside the record.")
@click.option("--trace-every", type=click.IntRange(min=1), default=1, show_default=True, help="Of so many texts, one.")
@click.option("--trace-cap", default="10GiB", show_default=True, help="Size of all files of the trace together.")
@click.option("--trace-impacts", is_flag=True, help="Keep each pick's impact in the trace, too.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Tell Prometheus how the job is, on this port.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line instead of a report.")
@click.pass_context
@expected_failures
def run(context: click.Context, /, no_verify: bool, as_json: bool, **settings: Any) -> None:
    """Run a model on a corpus and record how far each expert can be relied on.

    Each option can also be set in the environment (OBSERVER_RUN_BATCH=4) or in the file of --config (batch = 4). With
    the name of an unfinished run and the same settings the job goes on exactly where that one stopped.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but not all events were recorded, 130 interrupted.
    """
    if settings["experts"] is not None and settings["budget"] is not None:
        kept = config_file.stronger(context, "experts", "budget")
        if kept is None:
            raise click.UsageError("give --experts or --budget, not both")
        settings["budget" if kept == "experts" else "experts"] = None
    for option, needed in NEEDS.items():
        if not settings[needed] and context.get_parameter_source(option) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{_flag(option)} means nothing without {_flag(needed)}")
    from observer.job import JobConfig, run_job
    from observer.progress import JobProgress, JsonProgress

    config = JobConfig(verify=not no_verify, **settings)
    progress = JsonProgress(sys.stdout) if as_json else JobProgress()
    result = run_job(config, progress)
    if isinstance(progress, JsonProgress):
        progress.tell("done", **result._asdict())
    else:
        _report(config.db, result.run)
    if result.status == "cancelled":
        sys.exit(INTERRUPTED)
    sys.exit(INCOMPLETE if result.dropped else 0)


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
    from observer.progress import JobProgress

    chosen = read_corpus(texts)
    chosen = chosen if limit is None else validate_report.spread(chosen, limit)
    with opened(db) as engine, JobProgress() as progress:
        validate_report.validate(
            engine, run, chosen, experts=experts, cache=cache or default_cache(), progress=progress.count
        )


@main.command()
@db_option
@click.option("--run", help="Name of the run.  [default: the last one]")
@click.option("--bound", default=0.1, show_default=True, help="Experts surely trusted less may be dropped.")
@expected_failures
def advise(db: Path, run: str | None, bound: float) -> None:
    """Say what pinning, dropping and prefetching experts would gain; reads the record and changes nothing."""
    from observer.advise import advise as read_advice
    from observer.advise import print_advice

    with opened(db) as engine:
        print_advice(read_advice(engine, run, bound=bound))


main.add_command(runs)
main.add_command(db)
main.add_command(trace)
main.add_command(replay)
main.add_command(plan)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _report(db: Path, run: str | None) -> None:
    from observer.report import print_report, read_report

    with opened(db) as engine:
        print_report(read_report(engine, run), db)
