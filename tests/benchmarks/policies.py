"""Hit rate of every policy at several budgets, beside what could be reached at best (Belady).

    python -m tests.benchmarks.policies [--trace FILE.csv] [--texts 200] [--half-lives]

The routing of the embedded model on the embedded corpus, as three streams: one token a pass (decode), one text a pass
(prefill), and one token a pass from another context every 256 tokens (switching). Trust is learned on other texts.
A trace of another model (the public CSV form; its decode steps are taken) needs a path, since it is not ours to ship.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

import segmoe
from observer.corpus import read_corpus
from observer.observation import ALL, Observation, TextRef
from observer.replay.belady import belady
from observer.replay.csv_form import read_csv
from observer.replay.simulate import simulate
from observer.replay.trace import Trace
from segmoe.embedded import CORPUS, MODEL, VALIDATION
from segmoe.events import Event, ExpertKey, Routed
from segmoe.policies import POLICIES, make_rule

SWITCH_TOKENS, MAX_TOKENS = 256, 256
SHARES = (0.1, 0.25, 0.5, 0.75)
CAPS = (16, 280, 384, 768, 1536)
HALF_LIVES = (4, 8, 16, 32, 64, 128, 512, math.inf)


class Routing(NamedTuple):
    """What the embedded model picked."""

    expert: NDArray[np.int64]  # [tokens, layers * k] number of the expert
    text: NDArray[np.int64]  # [tokens]
    context: NDArray[np.int64]  # [tokens]
    keys: list[ExpertKey]
    nbytes: NDArray[np.int64]

    def trace(self, tokens: NDArray[np.int64], pass_index: NDArray[np.int64]) -> Trace:
        """The chosen tokens in their order, in the passes given for each."""
        picks = self.expert[tokens]
        counts = np.bincount(pass_index)
        return Trace.of_picks(
            np.repeat(pass_index, picks.shape[1]),
            picks.reshape(-1),
            tokens=counts,
            is_decode=counts == 1,
            keys=self.keys,
            nbytes=self.nbytes,
        )

    def streams(self) -> dict[str, Trace]:
        """The three streams."""
        everything = np.arange(len(self.text))
        rank = np.zeros(len(self.text), np.int64)  # of each token among those of its context
        for context in np.unique(self.context):
            mine = self.context == context
            rank[mine] = np.arange(mine.sum())
        shortest = np.bincount(self.context).min() // SWITCH_TOKENS * SWITCH_TOKENS
        switching = np.lexsort((rank, self.context, rank // SWITCH_TOKENS))
        switching = switching[rank[switching] < shortest]
        return {
            "decode": self.trace(everything, everything),
            "prefill": self.trace(everything, self.text),
            "switching": self.trace(switching, np.arange(len(switching))),
        }


class _Picks:
    """A sink that keeps which experts were picked, and lets an observation learn if there is one."""

    def __init__(self, observation: Observation | None = None) -> None:
        self.layers: list[NDArray[np.int16]] = []
        self._observation = observation

    def emit(self, event: Event) -> None:
        if isinstance(event, Routed):
            self.layers.append(event.topk_ids)
        if self._observation is not None:
            self._observation.take(event)


def run(texts: Path, limit: int, *, learn: bool) -> tuple[Routing, Mapping[ExpertKey, float]]:
    """The embedded model's routing on the first texts of a corpus, and the trust that it shows if asked to learn."""
    corpus = read_corpus(texts)
    corpus = corpus[:: max(1, len(corpus) // limit)][:limit]
    contexts = sorted({text.context for text in corpus})
    sizes = {key: part.nbytes for key, part in segmoe.load(MODEL).segmoe.manifest.experts.items()}
    observation = Observation(sizes, contexts) if learn else None
    sink = _Picks(observation)
    model: Any = segmoe.load(MODEL, sink=sink, capture="contribution" if learn else "routing")
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    keys = sorted(sizes)
    experts = 1 + max(key.expert for key in keys)
    rows, owner, context = [], [], []
    with torch.inference_mode():
        for ordinal, text in enumerate(corpus):
            ids = tokenizer(text.text, return_tensors="pt").input_ids[:, :MAX_TOKENS]
            if observation is not None:
                observation.begin([TextRef(ordinal, text.context)], True)
            sink.layers.clear()
            model(input_ids=ids, use_cache=False)
            numbers = [picks.astype(np.int64) + layer * experts for layer, picks in enumerate(sink.layers)]
            rows.append(np.concatenate(numbers, axis=1))
            owner += [ordinal] * len(rows[-1])
            context += [contexts.index(text.context)] * len(rows[-1])
    nbytes = np.array([sizes[key] for key in keys])
    routing = Routing(np.concatenate(rows), np.array(owner), np.array(context), keys, nbytes)
    return routing, {} if observation is None else learned(observation)


def learned(observation: Observation) -> dict[ExpertKey, float]:
    """Trust over all contexts."""
    observation.finish()
    return {
        ExpertKey(table.component, layer, expert): float(table.scores.trust[row, expert])
        for table in observation.tables(final=True)
        if table.context == ALL
        for row, layer in enumerate(table.layers)
        for expert in range(table.scores.trust.shape[1])
    }


def table(title: str, trace: Trace, caps: list[int], trust: Mapping[ExpertKey, float]) -> Table:
    """Hit rates, a row for each policy."""
    shown = Table("policy", *(f"{cap:,}" for cap in caps), title=f"{title}: hit rate by experts in memory")
    names = [*POLICIES, *(f"{name}-per-layer" for name in ("lru", "lfu", "use-rate"))]
    for name in names:
        rule = make_rule(name)
        if trust or not rule.uses_trust:
            outcomes = [simulate(trace, rule, experts=cap, trust=trust) for cap in caps]
            shown.add_row(name, *(f"{1 - outcome.miss_ratio:.3f}" for outcome in outcomes))
    shown.add_row("Belady (ceiling)", *(f"{1 - belady(trace, experts=cap).miss_ratio:.3f}" for cap in caps))
    return shown


def half_lives(title: str, trace: Trace, caps: list[int], base: str) -> Table:
    """Hit rates of a use-rate by its half-life."""
    shown = Table("half-life", *(f"{cap:,}" for cap in caps), title=f"{title}: {base}, hit rate by half-life in tokens")
    for tokens in HALF_LIVES:
        rule = make_rule(base)._replace(decay=math.log(2) / tokens)
        shown.add_row(str(tokens), *(f"{1 - simulate(trace, rule, experts=cap).miss_ratio:.3f}" for cap in caps))
    return shown


@click.command()
@click.option("--trace", "path", type=click.Path(path_type=Path), help="A route trace in the public CSV form.")
@click.option("--texts", default=200, show_default=True, help="Texts of each corpus, evenly taken.")
@click.option("--half-lives", "sweep", is_flag=True, help="Also the use-rate at other half-lives.")
def main(path: Path | None, texts: int, sweep: bool) -> None:
    """Print the tables."""
    _, trust = run(VALIDATION, texts, learn=True)
    routing, _ = run(CORPUS, texts, learn=False)
    caps = [round(share * len(routing.keys)) for share in SHARES]
    shown: list[tuple[str, Trace, list[int], Mapping[ExpertKey, float]]] = [
        (f"embedded model, {title}, {len(trace.tokens):,} passes, {trace.cycle:.0f} experts each", trace, caps, trust)
        for title, trace in routing.streams().items()
    ]
    if path is not None:
        decode = read_csv(path)
        decode = decode.only(decode.is_decode)
        shown.append((f"{path.stem}, {len(decode.tokens)} decode passes", decode, list(CAPS), {}))
    console = Console(width=120)
    for title, trace, at, known in shown:
        console.print(table(title, trace, at, known))
        if sweep:
            console.print(half_lives(title, trace, at, "use-rate"), half_lives(title, trace, at, "use-rate-per-layer"))


if __name__ == "__main__":
    main()
