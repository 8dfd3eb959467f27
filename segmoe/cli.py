"""The `segmoe` command. What it does is in the modules that it calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec

import click

from segmoe.errors import SegmoeError
from segmoe.policies import DEFAULT_POLICY

P = ParamSpec("P")


@click.group(context_settings={"auto_envvar_prefix": "SEGMOE", "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="segmoe")
def main() -> None:
    """Run Mixture-of-Experts checkpoints with their experts on disk."""


def expected_failures(command: Callable[P, None]) -> Callable[P, None]:
    """Print an expected failure as one line (with --json: one object) and exit with 1, with 130 after Ctrl-C."""

    @wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except SegmoeError as error:
            click.echo(f"segmoe: {error}", err=True)
            if kwargs.get("as_json"):
                click.echo(json.dumps({"error": {"kind": type(error).__name__, "message": str(error)}}))
            sys.exit(1)
        except KeyboardInterrupt:
            click.echo("segmoe: interrupted", err=True)
            sys.exit(130)

    return wrapper


RESIDENCY = ("experts", "budget", "policy", "device", "threads")


def residency(command: Callable[..., None]) -> Callable[..., None]:
    """Options that say how many experts are in memory, which memory, and who leaves; given on as one `residency`."""

    @wraps(command)
    def wrapper(**kwargs: Any) -> None:
        command(residency={name: kwargs.pop(name) for name in RESIDENCY}, **kwargs)

    for option in (
        click.option("--threads", type=click.IntRange(min=0), help="Threads that read ahead.  [default: by size]"),
        click.option("--device", default="cpu", show_default=True, help="Where the model is: cpu, cuda, cuda:1."),
        click.option("--policy", default=DEFAULT_POLICY, show_default=True, help="Who leaves memory first."),
        click.option("--budget", help="Memory for experts, such as 4GiB, instead of --experts."),
        click.option("--experts", type=click.IntRange(min=1), help="Experts in memory.  [default: a quarter of them]"),
    ):
        wrapper = option(wrapper)
    return wrapper


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@residency
@click.option("--prompts", type=click.Path(path_type=Path, exists=True), help="A text file, one prompt a line.")
@click.option("--new-tokens", type=click.IntRange(min=1), default=12, show_default=True, help="Tokens to generate.")
@click.option("--layers", is_flag=True, help="One layer in memory at a time: each expert's bytes and outputs.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@expected_failures
def verify(
    path: Path,
    residency: dict[str, Any],
    prompts: Path | None,
    new_tokens: int,
    layers: bool,
    as_json: bool,
) -> None:
    """Compare the segmented model at PATH with the stock model; exit with 1 if one bit differs.

    The stock model must fit memory, unless --layers compares layer by layer.
    """
    from segmoe.layerwise import verify_layers
    from segmoe.parity import PROMPTS
    from segmoe.parity import verify as verify_whole
    from segmoe.verdict import LayersVerdict, Verdict

    if layers and prompts is not None:
        raise click.UsageError("--layers runs no prompts; leave out --prompts")
    verdict: Verdict | LayersVerdict
    if layers:
        if residency.pop("device") != "cpu":
            raise click.UsageError("--layers compares on the CPU; leave out --device")
        verdict = verify_layers(path, **residency, report=partial(click.echo, err=True))
    else:
        lines = PROMPTS if prompts is None else tuple(filter(None, prompts.read_text(encoding="utf-8").splitlines()))
        verdict = verify_whole(path, **residency, prompts=lines, new_tokens=new_tokens)
    click.echo(json.dumps(verdict.as_dict()) if as_json else "\n".join(verdict.lines))
    sys.exit(0 if verdict.equal else 1)


@main.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--prompt", required=True, help="What the model goes on from.")
@click.option("--chat", is_flag=True, help="Put the prompt into the tokenizer's chat template.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="When to stop.")
@residency
@click.option("--do-sample", is_flag=True, help="Draw each token instead of taking the likeliest.")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), help="With --do-sample.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="With --do-sample.")
@click.option("--top-k", type=click.IntRange(min=1), help="With --do-sample.")
@click.option("--seed", type=int, help="Draw the same tokens each time.")
@expected_failures
def generate(
    path: Path | None,
    prompt: str,
    chat: bool,
    max_new_tokens: int,
    residency: dict[str, Any],
    do_sample: bool,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
) -> None:
    """Let the model at PATH write; without PATH, the small one that ships with segmoe. Ctrl-C ends it with 130."""
    chosen = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    sampling = {name: value for name, value in chosen.items() if value is not None}
    if sampling and not do_sample:
        raise click.UsageError(f"{', '.join(sampling)} mean nothing without --do-sample")
    from segmoe.embedded import MODEL
    from segmoe.generate import generate as run

    figures = run(
        MODEL if path is None else path,
        prompt,
        chat=chat,
        max_new_tokens=max_new_tokens,
        **residency,
        sampling=sampling if do_sample else None,
        seed=seed,
        report=lambda line: click.echo(f"segmoe: {line}", err=True),
    )
    click.echo(figures.line, err=True)
    sys.exit(130 if figures.interrupted else 0)


@main.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--budget", help="Say what would fit, such as 4GiB.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@expected_failures
def inspect(path: Path, budget: str | None, as_json: bool) -> None:
    """Tell what the checkpoint at PATH holds; exit with 1 if anything is missing."""
    from segmoe.survey import survey

    found = survey(path, budget)
    click.echo(json.dumps(found.as_dict()) if as_json else "\n".join(found.lines))
    sys.exit(0 if found.is_complete else 1)
