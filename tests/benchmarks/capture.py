"""What each capture level costs: CPU time of a segmented model with a collector, told all or nothing in turn.

    python -m tests.benchmarks.capture [FOLDER] [--rounds 9]

FOLDER is a checkpoint of real width (`python -m tests.benchmarks.wide FOLDER`); all experts are in memory, so that only
the observer differs. A round times every level and the unobserved model once; a ratio is of one round. CPU time of the
model's own thread is what it is held up by; that of the whole process also holds the observer's thread, which runs
beside it where a core is free.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from rich.console import Console
from rich.table import Table

import segmoe
from observer.collect import Collector
from observer.observation import Observation, TextRef
from segmoe.embedded import MODEL
from segmoe.events import CAPTURES

PREFILL_TOKENS, DECODE_STEPS = 256, 16
COLUMNS = ("prefill, model", "prefill, all", "decode, model", "decode, all")


class Spent(NamedTuple):
    """CPU seconds: of the thread that runs the model, and of the process, the observer's thread with it."""

    model: float
    all: float


def spent(work: Callable[[], None], collector: Collector) -> Spent:
    """Do the work, and let the collector finish its own."""
    collector.flush()
    model, everything = time.thread_time(), time.process_time()
    work()
    took = time.thread_time() - model
    collector.flush()
    return Spent(took, time.process_time() - everything)


def one_round(model: Any, ids: torch.Tensor, collector: Collector) -> tuple[float, ...]:
    """CPU seconds of a prefill pass and of single-token steps, in the order of COLUMNS."""
    kept: list[Any] = []

    def prefill() -> None:
        kept.append(model(input_ids=ids[:, :PREFILL_TOKENS], use_cache=True).past_key_values)

    def decode() -> None:
        for position in range(PREFILL_TOKENS, PREFILL_TOKENS + DECODE_STEPS):
            model(input_ids=ids[:, position : position + 1], past_key_values=kept[0], use_cache=True)

    return (*spent(prefill, collector), *spent(decode, collector))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=MODEL)
@click.option("--rounds", default=9, show_default=True, help="Times that each level has its turn.")
def main(folder: Path, rounds: int) -> None:
    """Print how much more CPU passes take at each level than without a sink."""
    sizes = {key: part.nbytes for key, part in segmoe.load(folder).segmoe.manifest.experts.items()}
    collector = Collector(Observation(sizes, ["text"]))
    model = segmoe.load(folder, sink=collector, capture="contribution")
    vocabulary = model.config.get_text_config().vocab_size
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in ("unobserved", *CAPTURES)}
    with torch.inference_mode():
        for number in range(rounds + 1):
            ids = torch.randint(1, vocabulary, (1, PREFILL_TOKENS + DECODE_STEPS))
            for name in times:
                collector.begin([TextRef(0, "text")], True)
                with model.segmoe.paused() if name == "unobserved" else contextlib.nullcontext():
                    model.segmoe.capture = "off" if name == "unobserved" else name
                    took = one_round(model, ids, collector)
                if number:  # the first round reads the experts
                    times[name].append(took)
    table = Table("capture", *COLUMNS)
    for name in CAPTURES:
        cells = []
        for part in range(len(COLUMNS)):
            ratios = [one[part] / none[part] - 1 for one, none in zip(times[name], times["unobserved"], strict=True)]
            least = [min(took[part] for took in times[which]) for which in (name, "unobserved")]
            cells.append(f"{least[0] / least[1] - 1:+.1%} ({statistics.median(ratios):+.1%})")
        table.add_row(name, *cells)
    base = [min(took[part] for took in times["unobserved"]) for part in (0, 2)]
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)
    console.print(
        f"CPU time against the unobserved model, least of {rounds} rounds (median of their ratios); unobserved "
        f"{PREFILL_TOKENS / base[0]:,.0f} tokens a CPU second in a prefill of {PREFILL_TOKENS}, "
        f"{DECODE_STEPS / base[1]:,.1f} in decoding; {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
