"""The `segmoe` command. What it does is in the modules that it calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import click

from segmoe.errors import SegmoeError

P = ParamSpec("P")


@click.group(context_settings={"auto_envvar_prefix": "SEGMOE", "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="segmoe")
def main() -> None:
    """Run Mixture-of-Experts checkpoints with their experts on disk."""


def expected_failures(command: Callable[P, None]) -> Callable[P, None]:
    """Print an expected failure as one line and exit with 1; anything else keeps its traceback."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except SegmoeError as error:
            click.echo(f"segmoe: {error}", err=True)
            sys.exit(1)

    return wrapper


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--experts", type=click.IntRange(min=1), help="Experts in memory at once. [default: one token cycle]")
@click.option("--budget", help="Memory for experts, such as 4GiB, instead of --experts.")
@click.option("--policy", default="lru", show_default=True, help="Who leaves memory first.")
@click.option("--prompts", type=click.Path(path_type=Path, exists=True), help="A text file, one prompt a line.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=12, show_default=True, help="Tokens to generate.")
@expected_failures
def verify(
    path: Path, experts: int | None, budget: str | None, policy: str, prompts: Path | None, new_tokens: int
) -> None:
    """Compare the segmented model at PATH with the stock model; exit with 1 if one bit differs."""
    from segmoe import verify as run
    from segmoe.parity import PROMPTS

    lines = PROMPTS if prompts is None else tuple(filter(None, prompts.read_text(encoding="utf-8").splitlines()))
    verdict = run(path, experts=experts, budget=budget, policy=policy, prompts=lines, new_tokens=new_tokens)
    click.echo("\n".join(verdict.lines))
    sys.exit(0 if verdict.equal else 1)
