"""Does a long decode leak? Resident memory, descriptors and threads over thousands of steps of the embedded model.

    python -m tests.benchmarks.soak [--steps 10000] [--every 500] [--threads 2]

A quarter of the experts is in memory, so that most steps read and evict. The tokens are those of the held-out corpus,
and each sequence starts anew after 256 of them, so that the KV cache is bounded. Exit 1 if resident memory grows by
more than 5% in the second half, or descriptors or threads grow at all after the first interval.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import click
import torch
from transformers import AutoTokenizer

import segmoe
from segmoe.embedded import CORPUS, MODEL
from segmoe.units import format_bytes

SEQUENCE_TOKENS = 256
GROWTH_LIMIT = 0.05


class Sample(NamedTuple):
    """What the process holds after so many steps."""

    steps: int
    rss_bytes: int
    descriptors: int
    threads: int
    tokens_per_s: float
    hit_rate: float


def sample(steps: int, tokens_per_s: float, hit_rate: float) -> Sample:
    """Ask the kernel."""
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    descriptors, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))  # noqa: PTH208
    return Sample(steps, rss, descriptors, threads, tokens_per_s, hit_rate)


def problems(samples: list[Sample]) -> list[str]:
    """What grew that must not."""
    found = []
    middle = next(one for one in samples if one.steps * 2 >= samples[-1].steps)
    growth = max(one.rss_bytes for one in samples if one.steps >= middle.steps) / middle.rss_bytes - 1
    if growth > GROWTH_LIMIT:
        found.append(f"resident memory grew by {growth:.1%} in the second half")
    for name in ("descriptors", "threads"):
        before, after = getattr(samples[0], name), getattr(samples[-1], name)
        if after > before:
            found.append(f"{name} grew from {before} to {after}")
    return found


def corpus_tokens() -> Iterator[int]:
    """The corpus's tokens, for ever."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for line in cycle(CORPUS.read_text(encoding="utf-8").splitlines()):
        yield from tokenizer(json.loads(line)["text"])["input_ids"]


@click.command()
@click.option("--steps", default=10_000, show_default=True, help="Tokens to decode.")
@click.option("--every", default=500, show_default=True, help="Steps between two looks.")
@click.option("--threads", default=2, show_default=True, help="Loader threads.")
def main(steps: int, every: int, threads: int) -> None:
    """Decode, look, and complain of what grows."""
    experts = len(segmoe.load(MODEL).segmoe.manifest.experts) // 4
    model = segmoe.load(MODEL, experts=experts, threads=threads)
    cache = model.segmoe.cache
    samples: list[Sample] = []
    past, before, began = None, cache.counters.copy(), time.perf_counter()
    click.echo("  steps   resident  descriptors  threads  tokens/s  hit rate")
    for step, token in zip(range(1, steps + 1), corpus_tokens(), strict=False):
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([[token]]), past_key_values=past, use_cache=True)
        past = output.past_key_values if step % SEQUENCE_TOKENS else None
        if step % every == 0:
            cache.check_integrity()
            spent = cache.counters.since(before)
            rate = every / (time.perf_counter() - began)
            samples.append(one := sample(step, rate, spent.hits / (spent.hits + spent.misses)))
            click.echo(
                f"{one.steps:7,}  {format_bytes(one.rss_bytes):>9}  {one.descriptors:11}  {one.threads:7}  "
                f"{one.tokens_per_s:8.1f}  {one.hit_rate:8.1%}"
            )
            before, began = cache.counters.copy(), time.perf_counter()
    found = problems(samples) if len(samples) > 1 else ["too few looks to judge; lower --every"]
    click.echo("; ".join(found) if found else f"nothing grew; {cache.counters}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
