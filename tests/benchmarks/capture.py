"""What each capture level costs: a segmented model with a collector, told all or nothing in turn, medians of ratios.

    python -m tests.benchmarks.capture [FOLDER] [--rounds 9]

FOLDER is a checkpoint of real width (`python -m tests.benchmarks.wide FOLDER`); all experts are in memory, so that only
the observer differs. A round times every level and the unobserved model once; a ratio is of one round.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

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


def one_round(model: object, ids: torch.Tensor) -> tuple[float, float]:
    """Seconds of a prefill pass and of single-token steps."""
    began = time.perf_counter()
    cache = model(input_ids=ids[:, :PREFILL_TOKENS], use_cache=True).past_key_values  # type: ignore[operator]
    between = time.perf_counter()
    for position in range(PREFILL_TOKENS, PREFILL_TOKENS + DECODE_STEPS):
        step = ids[:, position : position + 1]
        cache = model(input_ids=step, past_key_values=cache, use_cache=True).past_key_values  # type: ignore[operator]
    return between - began, time.perf_counter() - between


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=MODEL)
@click.option("--rounds", default=9, show_default=True, help="Times that each level has its turn.")
def main(folder: Path, rounds: int) -> None:
    """Print how much longer passes take at each level than without a sink."""
    sizes = {key: part.nbytes for key, part in segmoe.load(folder).segmoe.manifest.experts.items()}
    collector = Collector(Observation(sizes, ["text"]))
    model = segmoe.load(folder, sink=collector, capture="contribution")
    vocabulary = model.config.get_text_config().vocab_size
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("unobserved", *CAPTURES)}
    with torch.inference_mode():
        for number in range(rounds + 1):
            ids = torch.randint(1, vocabulary, (1, PREFILL_TOKENS + DECODE_STEPS))
            for name in times:
                collector.begin([TextRef(0, "text")], True)
                if name == "unobserved":
                    with model.segmoe.paused():
                        took = one_round(model, ids)
                else:
                    model.segmoe.capture = name
                    took = one_round(model, ids)
                    collector.flush()  # what is left of the work is done, so that it does not slow the next one
                if number:  # the first round reads the experts
                    times[name].append(took)
    table = Table("capture", "prefill, longer by", "decode, longer by")
    for name in CAPTURES:
        cells = []
        for part in (0, 1):
            ratios = [one[part] / none[part] for one, none in zip(times[name], times["unobserved"], strict=True)]
            low, *_, high = statistics.quantiles(ratios, n=10)
            cells.append(f"{statistics.median(ratios) - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}]")
        table.add_row(name, *cells)
    base = [statistics.median(took[part] for took in times["unobserved"]) for part in (0, 1)]
    console = Console()
    console.print(table)
    console.print(
        f"medians and 10th..90th percentile of {rounds} rounds; unobserved {PREFILL_TOKENS / base[0]:,.0f} tokens/s "
        f"prefill of {PREFILL_TOKENS}, {DECODE_STEPS / base[1]:,.1f} decode; {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
