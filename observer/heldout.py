"""What texts that the run has not scored say of the experts, and what null hypotheses do. Comparing is validate.py.

Null tests: with each pick given to an expert and a layer drawn by chance, trust knows nothing and must foretell
nothing. With random weights in the model it knows only how deep a layer lies, and must foretell nothing within a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

import segmoe
from observer.ablation import stock
from observer.corpus import Text
from observer.observation import ALL, Observation, TextRef
from observer.totals import ScoreTable
from segmoe.building import read_config
from segmoe.events import Event, ExpertKey, Routed, StepDone
from segmoe.modules import experts_modules

Array = NDArray[np.float64]
Statistics = dict[str, dict[str, Array]]
"""Context -> statistic -> [experts]."""


def observe(
    model: Any, tokenizer: Any, texts: Sequence[Text], *, shuffled: bool = False, max_tokens: int = 256, batch: int = 8
) -> tuple[Observation, Falls]:
    """Read the texts with a stock model; `shuffled` gives each pick to an expert and layer drawn by chance."""
    places = experts_modules(model)
    sizes = {ExpertKey(p.component, p.layer, expert): 1 for p in places for expert in range(p.num_experts)}
    seen = Observation(sizes, {text.context for text in texts}, residency_cap=0)
    sink = _Sink(seen, np.random.default_rng(0) if shuffled else None)
    with segmoe.attach(model, sink, capture="contribution"), torch.inference_mode():
        for first in range(0, len(texts), batch):
            part = texts[first : first + batch]
            ids = [tokenizer(text.text)["input_ids"][:max_tokens] for text in part]
            padded = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
            mask = torch.zeros_like(padded)
            for row, tokens in enumerate(ids):
                padded[row, : len(tokens)], mask[row, : len(tokens)] = torch.tensor(tokens), 1
            seen.begin([TextRef(first + row, text.context) for row, text in enumerate(part)], evidence=True)
            sink.contexts = [text.context for text in part]
            model(input_ids=padded, attention_mask=mask, use_cache=False)
    seen.finish()
    return seen, sink.falls


def held_out(checkpoint: Path, texts: Sequence[Text]) -> tuple[tuple[ScoreTable, ...], Falls]:
    """The scores that these texts alone would give, and where NLL fell."""
    seen, falls = observe(stock(checkpoint)[0], AutoTokenizer.from_pretrained(checkpoint), texts)
    return seen.tables(final=True), falls


def nulls(checkpoint: Path, texts: Sequence[Text]) -> dict[str, tuple[ScoreTable, ...]]:
    """Scores where there is nothing to know, by name of the null test."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    torch.manual_seed(0)
    random = AutoModelForCausalLM.from_config(
        read_config(checkpoint), dtype=torch.float32, experts_implementation="eager"
    ).eval()
    return {
        "trust, shuffled routing": observe(stock(checkpoint)[0], tokenizer, texts, shuffled=True)[0].tables(final=True),
        "trust, random weights": observe(random, tokenizer, texts)[0].tables(final=True),
    }


def in_order(tables: Sequence[ScoreTable], keys: Sequence[ExpertKey], column: str) -> dict[str, Array]:
    """A column of the scores by context, in the order of the keys."""
    found: dict[str, dict[ExpertKey, float]] = {}
    for table in tables:
        values = np.asarray(getattr(table.scores, column), np.float64)
        place = found.setdefault(table.context, {})
        for row, layer in enumerate(table.layers):
            place.update({ExpertKey(table.component, layer, e): float(value) for e, value in enumerate(values[row])})
    return {context: np.array([values[key] for key in keys]) for context, values in found.items()}


class Falls:
    """Where the NLL of the next token fell from one token to the next, by context and expert: an earlier idea of trust.

    score = share of the expert's tokens at which it fell / (1 + variance of the falls).
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ExpertKey], Array] = {}  # uses, falls, sum of falls, sum of squares

    def take(self, step: StepDone, layers: Sequence[Routed], contexts: Sequence[str]) -> None:
        """Take one pass."""
        follows = (step.sequence[1:] == step.sequence[:-1]) & (step.position[1:] == step.position[:-1] + 1)
        fall = np.concatenate(([np.nan], np.where(follows, step.nll[:-1] - step.nll[1:], np.nan)))
        known = np.isfinite(fall) & (step.position >= 0)
        labels = np.array(contexts)[step.sequence]
        for event in layers:
            for context in set(contexts):
                rows = np.flatnonzero(known & (labels == context))
                experts, values = event.topk_ids[rows].ravel(), np.repeat(fall[rows], event.topk_ids.shape[1])
                for expert in np.unique(experts):
                    own = values[experts == expert]
                    found = np.array([len(own), (own > 0).sum(), own.sum(), (own**2).sum()])
                    for name in (context, ALL):
                        key = (name, ExpertKey(event.component, event.layer, int(expert)))
                        self._sums[key] = self._sums.get(key, np.zeros(4)) + found

    def scores(self, keys: Sequence[ExpertKey], context: str) -> Array:
        """Score the experts; 0.5 for one without tokens."""
        result = np.full(len(keys), 0.5)
        for place, key in enumerate(keys):
            if (context, key) in self._sums:
                uses, falls, total, squares = self._sums[context, key]
                result[place] = falls / uses / (1 + max(squares / uses - (total / uses) ** 2, 0.0))
        return result


class _Sink:
    def __init__(self, seen: Observation, random: np.random.Generator | None) -> None:
        self.falls, self.contexts = Falls(), list[str]()
        self._seen, self._random = seen, random
        self._layers: list[Routed] = []

    def emit(self, event: Event, /) -> None:
        if isinstance(event, Routed):
            self._layers.append(event)
            return
        if isinstance(event, StepDone):
            self.falls.take(event, self._layers, self.contexts)
            for picks in self._layers if self._random is None else self._shuffled(self._random):
                self._seen.take(picks)
            self._layers = []
        self._seen.take(event)

    def _shuffled(self, random: np.random.Generator) -> list[Routed]:
        """The pass with its layers in another order, and other experts in each."""
        places = sorted(picks.layer for picks in self._layers)
        result = []
        for place, source in zip(places, random.permutation(len(places)), strict=True):
            picks = self._layers[source]
            experts = self._seen.grids[picks.component].experts
            order = random.random((len(picks.topk_ids), experts)).argsort(axis=1)
            drawn = order[:, : picks.topk_ids.shape[1]].astype(np.int16)
            result.append(replace(picks, layer=place, topk_ids=drawn))
        return result
