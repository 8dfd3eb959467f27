"""Reads texts and changed texts with an observer and with the stock model, and keeps what each change did to both.

What it means is salience.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoTokenizer

import segmoe
from observer.observation import Observation, TextRef
from observer.salience import DIMENSIONS, Salience, Scorer, Window
from segmoe.embedded import MODEL
from segmoe.events import Event, Routed
from tests.benchmarks.causes import WINDOW, Array, Index, Past, Stock, causes
from tests.benchmarks.interventions import exchange, interventions
from tests.benchmarks.stimuli import CHANGED, DOMAINS, OWN, conditions, read_sequences

WARM_SEQUENCES = 24  # of each known domain, before
LATER = slice(CHANGED // WINDOW, None)  # the windows that are changed
AGAINST = {f"unseen against known domain{own}": (f"known domain{own}", f"unseen domain{own}") for own in ("", OWN)}


class Pair(NamedTuple):
    """Of unchanged windows and changed ones, [window, columns]; of many sequences [sequence, window, columns]."""

    unchanged: Array
    changed: Array


class Response(NamedTuple):
    """What one sequence's change did; causes are None where the stock model has no such change."""

    name: str
    scores: Pair
    causes: Pair | None


class Remembering(Scorer):
    """Keeps the figures before calibration, of which an observer records the scores only."""

    def __init__(self, layers: int, experts: int) -> None:
        super().__init__(layers, experts)
        self.figures: list[Array] = []

    def score(self, window: Window) -> Salience:
        found = super().score(window)
        self.figures.append(np.where(np.array(DIMENSIONS) == "reward", -found.raw, found.raw))  # its NLL, turned
        return found


class Listener:
    """A model and an observation that listens to it; `scores` reads a sequence."""

    def __init__(self) -> None:
        manifest = segmoe.load(MODEL).segmoe.manifest
        sizes = {key: segment.nbytes for key, segment in manifest.experts.items()}
        self.observation = Observation(sizes, DOMAINS, window_tokens=10**9)
        self.model = segmoe.load(MODEL, sink=self, capture="contribution")
        self.scorer = Remembering(*self.observation.details["model"].scorer.surprise.routing.shape)
        self.observation.details["model"].scorer = self.scorer
        self._texts = 0
        self._picks: list[np.ndarray] = []

    def emit(self, event: Event, /) -> None:
        if isinstance(event, Routed):
            self._picks.append(event.topk_ids)
        self.observation.take(event)

    def scores(self, ids: list[int]) -> Array:
        """Five scores of each 32-token window and the five figures that they are of, [window, 5 + 5]."""
        self.observation.begin([TextRef(self._texts, DOMAINS[0])], evidence=True)
        self._texts += 1
        self._picks, self.scorer.figures = [], []
        with torch.inference_mode():
            self.model(input_ids=torch.tensor([ids]), use_cache=False)
        (rows,) = self.observation.take_salience()
        scores = np.stack([getattr(rows, name) for name in DIMENSIONS], axis=1)
        return np.concatenate((scores, self.scorer.figures), axis=1)

    def picks(self, ids: list[int]) -> np.ndarray:
        """The experts that a sequence's tokens pick, [tokens, layers, k]."""
        self.scores(ids)
        return np.stack(self._picks, axis=1)


def responses(count: int, warm: int, say: Callable[[str], None]) -> Iterator[Response]:
    """What each change did to each sequence."""
    sequences = read_sequences(AutoTokenizer.from_pretrained(MODEL))
    rng, listener, stock = np.random.default_rng(0), Listener(), Stock(MODEL)
    began, first = time.monotonic(), listener.scorer.to_state()
    read = {name: [one.picks for one in stock.read(texts.warm[:warm])] for name, texts in sequences.items()}
    layers = read[DOMAINS[0]][0].shape[1]
    for number, base in enumerate(DOMAINS):
        known, unseen = DOMAINS[(number + 1) % 4], DOMAINS[(number + 2) % 4]
        listener.scorer.restore(first)
        past = Past(layers, stock.experts)
        for domain in (*(domain for domain in DOMAINS if domain not in (unseen, base)), base):
            for ids, picks in zip(sequences[domain].warm[:warm], read[domain], strict=True):
                listener.scores(ids)
                past.read(picks)
        state = listener.scorer.to_state()
        heard = [listener.picks(ids) for ids in sequences[known].warm[:warm]]  # the state is restored after
        for index, ids in enumerate(sequences[base].test[:count]):
            if index % 20 == 0:
                say(f"{base}, sequence {index}, {time.monotonic() - began:.0f} s")
            listener.scorer.restore(state)
            unchanged = listener.scores(ids)[LATER]
            texts = conditions(sequences, ids, known, unseen, index, rng)
            itself, *readings = stock.read([ids, *texts.values()])
            cause = causes(itself, past)[LATER]
            for (name, changed), reading in zip(texts.items(), readings, strict=True):
                listener.scorer.restore(state)
                scores = Pair(unchanged, listener.scores(changed)[LATER])
                yield Response(name, scores, Pair(cause, causes(reading, past)[LATER]))
            picked = {
                "picks are a read text's": read[known][index % warm],
                "partners exchanged": np.concatenate((itself.picks[:CHANGED], exchanged(itself.picks[CHANGED:], rng))),
            }
            changes = interventions(listener.model, ids, heard[index % warm], CHANGED, rng)
            for name, intervention in changes.items():
                listener.scorer.restore(state)
                with intervention():
                    scores = Pair(unchanged, listener.scores(ids)[LATER])
                measured = None
                if name in picked:  # the windows before are the sequence's own
                    picks = np.concatenate((itself.picks[:CHANGED], picked[name][CHANGED:]))
                    measured = Pair(cause, causes(stock.picking(itself, picks), past)[LATER])
                yield Response(name, scores, measured)


def exchanged(picks: Index, rng: np.random.Generator) -> Index:
    """The stock model's picks [tokens, layers, k] with partners exchanged as in the intervention."""
    each = [exchange(torch.from_numpy(picks[:, layer]), rng).numpy() for layer in range(picks.shape[1])]
    return np.stack(each, axis=1)


class Found(NamedTuple):
    """Scores and causes by stimulus, of all sequences."""

    scores: dict[str, Pair]
    causes: dict[str, Pair]


def gathered(each: Iterator[Response]) -> Found:
    """Stack the sequences, and add the comparison of unseen with known domains."""
    scores: dict[str, list[Pair]] = {}
    measured: dict[str, list[Pair]] = {}
    for one in each:
        scores.setdefault(one.name, []).append(one.scores)
        if one.causes is not None:
            measured.setdefault(one.name, []).append(one.causes)
    found = Found(*({name: Pair(*map(np.stack, zip(*pairs, strict=True))) for name, pairs in kind.items()}
                    for kind in (scores, measured)))  # fmt: skip
    for kind in found:
        for name, (known, unseen) in AGAINST.items():
            kind[name] = Pair(kind[known].changed, kind[unseen].changed)
    return found
