"""What each capture level costs: a segmented model with a collector, told all or nothing in turn.

    python -m tests.benchmarks.capture [FOLDER] [--rounds 9] [--steps 180]

FOLDER is a checkpoint of real width (`python -m tests.benchmarks.wide FOLDER`); all experts are in memory, so that only
the observer differs. In a round every level and the unobserved model take one pass each, in a random order; a ratio is
of one round, and what is told is the median of the ratios with a 90% bootstrap interval. CPU time of the model's own
thread is what the observer takes from it; wall time also holds what it waits for, such as the interpreter's lock; CPU
time of the whole process also holds the observer's thread, which runs beside it where a core is free.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import segmoe
from observer.collect import Collector
from observer.observation import Observation, TextRef
from segmoe.embedded import MODEL
from segmoe.events import CAPTURES

PREFILL_TOKENS = 256
WARM_ROUNDS = 2  # the first read the experts
UNOBSERVED = "unobserved"


class Spent(NamedTuple):
    """Seconds: CPU of the thread that runs the model, wall, and CPU of the process, the observer's thread with it."""

    model: float
    wall: float
    all: float


def spent(work: Callable[[], Any], collector: Collector) -> Spent:
    """Do the work, and let the collector finish its own."""
    collector.flush()
    model, wall, everything = time.thread_time(), time.perf_counter(), time.process_time()
    work()
    model, wall = time.thread_time() - model, time.perf_counter() - wall
    collector.flush()
    return Spent(model, wall, time.process_time() - everything)


def passes(model: Any, collector: Collector, tokens: int, rounds: int, rng: np.random.Generator) -> dict[str, Any]:
    """Level -> what passes of so many tokens took, [round, 3]; single tokens follow 256 that are kept."""
    vocabulary = model.config.get_text_config().vocab_size
    past = model(input_ids=torch.randint(1, vocabulary, (1, PREFILL_TOKENS)), use_cache=True).past_key_values
    times: dict[str, list[Spent]] = {name: [] for name in (UNOBSERVED, *CAPTURES)}
    for number in range(rounds + WARM_ROUNDS):
        for name in rng.permutation(list(times)):
            ids = torch.randint(1, vocabulary, (1, tokens))
            if tokens == 1 and past.get_seq_length() > PREFILL_TOKENS:
                past.crop(PREFILL_TOKENS - past.get_seq_length())
            arguments = {"past_key_values": past} if tokens == 1 else {}
            with model.segmoe.paused() if name == UNOBSERVED else contextlib.nullcontext():
                model.segmoe.capture = "off" if name == UNOBSERVED else name
                took = spent(lambda ids=ids, more=arguments: model(input_ids=ids, use_cache=True, **more), collector)  # type: ignore[misc]
            if number >= WARM_ROUNDS:
                times[name].append(took)
    return {name: np.array(rows) for name, rows in times.items()}


def with_interval(ratios: np.ndarray, rng: np.random.Generator) -> str:
    """The median with its 90% bootstrap interval, in percent above 1."""
    drawn = np.median(rng.choice(ratios, (1000, len(ratios))), axis=1)
    low, high = np.percentile(drawn, (5, 95)) - 1
    return f"{np.median(ratios) - 1:+.1%} [{low:+.1%}, {high:+.1%}]"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=MODEL)
@click.option("--rounds", default=9, show_default=True, help="Prefill passes at each level.")
@click.option("--steps", default=180, show_default=True, help="Passes of one token at each level.")
def main(folder: Path, rounds: int, steps: int) -> None:
    """Print how much more time passes take at each level than without a sink."""
    sizes = {key: part.nbytes for key, part in segmoe.load(folder).segmoe.manifest.experts.items()}
    collector = Collector(Observation(sizes, ["text"]))
    model = segmoe.load(folder, sink=collector, capture="contribution")
    collector.begin([TextRef(0, "text")], True)
    rng = np.random.default_rng(0)
    table = Table("pass", "capture", "model's thread", "wall", "with the observer's thread")
    with torch.inference_mode():
        for phase, tokens, count in (("prefill", PREFILL_TOKENS, rounds), ("decode", 1, steps)):
            times = passes(model, collector, tokens, count, rng)
            base = times[UNOBSERVED]
            took = f"{phase}: {1e3 * np.median(base[:, 0]):,.1f} ms"
            for name in CAPTURES:
                cells = (with_interval(ratios, rng) for ratios in (times[name] / base).T)
                table.add_row(took if name == "off" else "", name, *cells)
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
    console.print(
        f"more than unobserved; medians of {rounds} passes of {PREFILL_TOKENS} tokens and {steps} of "
        f"one, 90% intervals; {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
