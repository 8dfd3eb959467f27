"""What the seam and the observer cost on the embedded model: both sides in one process, in turn, medians and ratios.

    python -m tests.benchmarks [--rounds 15]

The embedded model's experts are 36 KB each, so overheads weigh far more here than on a checkpoint of real width.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

import segmoe
from observer.collect import Collector
from observer.observation import Observation, TextRef
from segmoe.embedded import MODEL
from segmoe.events import NullSink

PREFILL_TOKENS, DECODE_STEPS = 256, 32


def observed(experts: int) -> Any:
    """A model with a real collector, announced as one text."""
    manifest = segmoe.load(MODEL).segmoe.manifest
    sizes = {key: segment.nbytes for key, segment in manifest.experts.items()}
    collector = Collector(Observation(sizes, ["text"]))
    collector.begin([TextRef(0, "text")], True)
    return segmoe.load(MODEL, experts=experts, sink=collector, capture="contribution")


def contenders() -> dict[str, Any]:
    """Name -> model; the first is what the others are compared with."""
    return {
        "stock eager": AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto", experts_implementation="eager").eval(),
        "segmented, all 160 experts": segmoe.load(MODEL, experts=160),
        "  routing, null sink": segmoe.load(MODEL, experts=160, sink=NullSink(), capture="routing"),
        "  contribution, null sink": segmoe.load(MODEL, experts=160, sink=NullSink(), capture="contribution"),
        "  contribution, collector": observed(160),
        "segmented, 40 experts": segmoe.load(MODEL, experts=40),
        "segmented, 8 experts": segmoe.load(MODEL, experts=8),
    }


def prefill(model: Any, ids: torch.Tensor) -> None:
    """One pass over all tokens."""
    model(input_ids=ids[:, :PREFILL_TOKENS], use_cache=False)


def decode(model: Any, ids: torch.Tensor) -> None:
    """Single-token steps on given ids, so that routing varies and both sides route alike."""
    cache = None
    for position in range(DECODE_STEPS):
        cache = model(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True).past_key_values


@click.command()
@click.option("--rounds", default=15, show_default=True, help="Times that each contender has its turn.")
def main(rounds: int) -> None:
    """Print tokens per second and the ratio to stock eager, of which higher is faster."""
    models = contenders()
    table = Table("contender", "prefill tok/s", "ratio", "decode tok/s", "ratio")
    rates: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in models}
    tasks: dict[str, tuple[Callable[[Any, torch.Tensor], None], int]] = {
        "prefill": (prefill, PREFILL_TOKENS),
        "decode": (decode, DECODE_STEPS),
    }
    with torch.inference_mode():
        for number in range(rounds + 1):
            ids = torch.randint(1, 4096, (1, PREFILL_TOKENS), generator=torch.Generator().manual_seed(number))
            for name, model in models.items():
                for task, (work, tokens) in tasks.items():
                    began = time.perf_counter()
                    work(model, ids)
                    if number:  # the first round warms up
                        rates[name][task].append(tokens / (time.perf_counter() - began))
    first = next(iter(models))
    for name, by_task in rates.items():
        cells = []
        for task, values in by_task.items():
            pairs = [value / base for value, base in zip(values, rates[first][task], strict=True)]
            cells += [f"{statistics.median(values):,.0f}", f"{statistics.median(pairs):.2f}"]
        table.add_row(name, *cells)
    Console().print(table, f"medians of {rounds} rounds, {torch.get_num_threads()} threads, random ids, batch of 1")


if __name__ == "__main__":
    main()
