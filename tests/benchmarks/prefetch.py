"""What guessing the next layer's experts gains and costs: decode passes with and without, in turn.

    python -m tests.benchmarks.prefetch FOLDER [--rounds 10]

FOLDER is written by wide.py if it is not there. Cold, memory just holds the budget and what is read early, and the
kernel forgets the files before each pass; warm, all files are in the page cache, and guesses are made although nobody
waits for what they bring. A guess changes neither who is loaded nor who leaves, so that both sides see one cache. No
two passes miss as many experts, and the machine is now faster, now slower: `compare` takes both out of the times. The
checkpoint's weights are random; how often guesses are right of a trained model is told of the embedded one, which reads
texts token by token.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

import segmoe
from segmoe.direct import THREADS
from segmoe.embedded import CORPUS, MODEL
from segmoe.survey import survey
from tests.benchmarks import wide
from tests.benchmarks.cold import just_enough
from tests.benchmarks.contender import Contender, Passes
from tests.benchmarks.memory import NoCapError, hard_cap

TURN: dict[str, Any] = {"passes": 24, "tokens": 1, "guess_every": 2}

SETTLING = 5
"""Turns before anything is timed: they fill the budget, and guesses learn how often they are right."""


class Compared(NamedTuple):
    """What a pass takes without and with, both at the mean number of missed experts."""

    without_s: float
    with_s: float
    ratio: float
    low: float  # of a 90% interval of the ratio
    high: float


def compare(seconds: np.ndarray, missed: np.ndarray, is_with: np.ndarray, samples: int = 1000) -> Compared:
    """Compare passes that took turns: seconds and missed [turns, passes], is_with [passes].

    Least squares for seconds = what the turn takes + what `with` adds + a missed expert's time x missed. The interval
    is bootstrapped over whole turns, whose passes are no independent ones.
    """
    s, m = (values - values.mean(1, keepdims=True) for values in (seconds, missed.astype(float)))
    w = np.broadcast_to(is_with - is_with.mean(), s.shape)

    def fit(turns: np.ndarray) -> tuple[float, float]:
        (adds, _), *_ = np.linalg.lstsq(np.stack([w[turns].ravel(), m[turns].ravel()], 1), s[turns].ravel())
        without = seconds[turns].mean() - adds * is_with.mean()
        return without, without + adds

    rng, count = np.random.default_rng(0), len(seconds)
    drawn = [fit(rng.integers(0, count, count)) for _ in range(samples)]
    low, high = np.percentile([b / a for a, b in drawn], [5, 95])
    without, guessing = fit(np.arange(count))
    return Compared(without, guessing, guessing / without, low, high)


def decoded(
    folder: Path, experts: int, threads: int, cap_bytes: int | None, settling: int, rounds: int
) -> list[Passes]:
    """Turns with so many experts in memory, from a cold disk if there is a cap."""
    with hard_cap(cap_bytes) as cap, Contender(threads, cap) as contender:
        readers = {} if cap_bytes is None else {"threads": THREADS}
        contender.open(folder, kind="segmoe", experts=experts, **readers)
        turns = [contender.run(seed=seed, cold=cap_bytes is not None, **TURN) for seed in range(settling + rounds)]
    return turns[settling:]


@mock.patch("segmoe.cache.WAITING_NS", 0)  # it is small, and nobody waits for long
def trained(texts: int) -> Table:
    """How often each guess of a token was right lately, by layer, behind so many texts of 64 tokens."""
    model = segmoe.load(MODEL, experts=40, threads=1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    right: dict[str, list[np.ndarray]] = {}
    for line in lines[:: len(lines) // texts]:
        past = None
        for token in tokenizer(json.loads(line)["text"]).input_ids[:64]:
            with torch.inference_mode():
                past = model(input_ids=torch.tensor([[token]]), past_key_values=past, use_cache=True).past_key_values
        for place in model.segmoe.manifest.modules:
            seam = model.get_submodule(place.path)._segmoe
            if place.layer:
                right.setdefault(f"{place.layer}, a layer before", []).append(seam.far.right.copy())
            if seam.near:
                right.setdefault(f"{place.layer}, before attention", []).append(seam.near.right.copy())
    table = Table("embedded model, guesses of layer", *(f"guess {rank + 1}" for rank in range(place.top_k)))
    for name, found in right.items():
        table.add_row(name, *(f"{share:.2f}" for share in np.mean(found, axis=0)))
    model.segmoe.close()
    return table


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--share", "shares", multiple=True, default=(10, 25), show_default=True, help="Budget, % of experts.")
@click.option("--rounds", default=10, show_default=True, help="Timed turns of 24 passes of each budget.")
@click.option("--threads", default=2, show_default=True, help="Threads of the model.")
@click.option("--layers", default=wide.LAYERS, show_default=True, help="Layers of a checkpoint that is not there yet.")
@click.option("--smoke", is_flag=True, help="A tiny checkpoint and one turn: does it work?")
def main(folder: Path, shares: tuple[int, ...], rounds: int, threads: int, layers: int, smoke: bool) -> None:
    """Decode with and without guesses, and print what they gain and what they waste."""
    wide.write(folder, wide.small() if smoke else wide.config(layers))
    rounds = 1 if smoke else rounds
    found = survey(folder)
    one, console = found.components[0], Console(width=None if sys.stdout.isatty() else 120)
    columns = ("ms a pass, without", "with", "ratio", "missed a pass", "prefetched", "wasted")
    table = Table("in memory", "files", *columns)
    for share in shares:
        experts = max(1, one.experts_expected * share // 100)
        for name, cap_bytes in (("cold", just_enough(found, experts)[1]), ("warm", None)):
            try:
                turns = decoded(folder, experts, threads, cap_bytes, 1 if smoke else SETTLING, rounds)
            except NoCapError as reason:
                raise click.ClickException(str(reason)) from reason
            missed, seconds = (np.array([getattr(turn, name) for turn in turns]) for name in ("missed", "seconds"))
            compared = compare(seconds, missed, np.arange(seconds.shape[1]) % 2 == 1)
            early = (sum(getattr(turn, name) for turn in turns) for name in ("prefetched", "wasted"))
            table.add_row(
                f"{experts} of {one.experts_expected:,}",
                name,
                *(f"{1e3 * side:.1f}" for side in (compared.without_s, compared.with_s)),
                f"{compared.ratio:.3f} [{compared.low:.3f}, {compared.high:.3f}]",
                f"{missed.mean():.1f}",
                *(f"{count / missed[:, 1::2].sum():.0%}" for count in early),
            )
    console.print(table, trained(2 if smoke else 40))


if __name__ == "__main__":
    main()
