"""Changes one thing that the observer hears of a model, and nothing else. What texts do is salience.py.

A changed text changes all that comes after, so it cannot tell whether two dimensions answer to one cause or to two.
Here the text stays, one figure of each layer's experts is changed from a position on, and what a layer hands on is held
as it was: the model computes and foretells exactly what it did. Only the next token that is foretold or missed changes
the model's output, which nothing comes after.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

from segmoe import experts
from segmoe.contributions import Added
from segmoe.experts import Seam

STRENGTH = 2.0  # exponent of weights: 1 / 2 makes them more even, 2 less
NATS = 1.0  # added to the true next token's logit
SHARE = 0.3  # of an output's length, added to it

Change = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Of a layer's picks: its number, ids [rows, k], weights [rows, k] -> ids, weights."""

Turn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of one expert's outputs [n, hidden]: the rank that it has among its tokens' picks [n], outputs -> outputs."""

Intervention = Callable[[], contextlib.AbstractContextManager[None]]


def interventions(
    model: Any, ids: list[int], other: np.ndarray, start: int, rng: np.random.Generator
) -> dict[str, Intervention]:
    """Name -> a context in which the sequence of these ids is heard otherwise from `start` on.

    `other` are the ids [rows, layers, k] that the tokens of a text picked that was read before: pairs of one that was
    not would be new, and novelty right to rise.
    """
    hidden = model.config.get_text_config().hidden_size
    direction = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=hidden)).float(), dim=0)

    def from_start(change: Change) -> Change:
        def changed(layer: int, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            later = change(layer, ids[start:], weights[start:])
            return torch.cat((ids[:start], later[0])), torch.cat((weights[:start], later[1]))

        return changed

    def elsewhere(layer: int, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(other[-len(ids) :, layer]).to(ids), weights

    def pushed(outputs: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
        size = SHARE * outputs.float().norm(dim=1, keepdim=True)
        return (outputs.float() + sign[:, None] * size * direction).to(outputs.dtype)

    def apart(ranks: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        return pushed(outputs, 1.0 - 2.0 * (ranks % 2))

    def together(ranks: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        return pushed(outputs, torch.ones(len(ranks)))

    def first_round(ranks: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        return torch.where((ranks == 0)[:, None], -outputs, outputs)

    exchanged = from_start(lambda _, ids, weights: (exchange(ids, rng), weights))
    return {
        "picks are a read text's, in name": lambda: told(from_start(elsewhere)),
        "picks are a read text's": lambda: done(from_start(elsewhere)),
        "partners exchanged, in name": lambda: told(exchanged),
        "partners exchanged": lambda: done(exchanged),
        "weights more even": lambda: done(from_start(powered(1 / STRENGTH))),
        "weights less even": lambda: done(from_start(powered(STRENGTH))),
        "next token foretold": lambda: foretold(model, ids, start, NATS),
        "next token missed": lambda: foretold(model, ids, start, -NATS),
        "outputs driven apart": lambda: turned(apart, start),
        "first output turned round": lambda: turned(first_round, start),
        "outputs drawn together": lambda: turned(together, start),
    }


def powered(exponent: float) -> Change:
    """Weights to a power, with the sum that they had: a temperature that keeps the picks and their order."""

    def change(_: int, ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        new = weights.float() ** exponent
        return ids, (new / new.sum(1, keepdim=True) * weights.float().sum(1, keepdim=True)).to(weights.dtype)

    return change


def exchange(ids: torch.Tensor, rng: np.random.Generator, window: int = 32) -> torch.Tensor:
    """Exchange picks of the same rank, but for the first, among a window's tokens: other pairs of as many picks.

    >>> before = torch.arange(64).view(32, 2)
    >>> after = exchange(before, np.random.default_rng(0))
    >>> torch.equal(after[:, 0], before[:, 0]), torch.equal(after[:, 1], before[:, 1])
    (True, False)
    >>> torch.equal(after[:, 1].sort().values, before[:, 1])
    True
    """
    new = ids.numpy().copy()
    for begin in range(0, len(new), window):
        part = new[begin : begin + window]
        for rank in range(1, part.shape[1]):
            for one, other in enumerate(rng.permutation(len(part))):
                if part[one, rank] not in part[other] and part[other, rank] not in part[one]:
                    part[[one, other], rank] = part[[other, one], rank]
    return torch.from_numpy(new)


@contextlib.contextmanager
def told(change: Change) -> Iterator[None]:
    """Only what is told of the picks is changed."""
    tell = Seam._tell

    def changed(seam: Seam, ids: torch.Tensor, weights: torch.Tensor, contributed: Any) -> None:
        tell(seam, *change(seam.place.layer, ids, weights), contributed)

    with mock.patch.object(Seam, "_tell", changed):
        yield


@contextlib.contextmanager
def done(change: Change) -> Iterator[None]:
    """The experts run on changed picks and are heard; what is handed on is what they give on their own."""
    forward = Seam.forward

    def twice(seam: Seam, module: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        forward(seam, module, hidden, *change(seam.place.layer, ids, weights))
        with seam._runtime.paused():
            return forward(seam, module, hidden, ids, weights)

    with mock.patch.object(Seam, "forward", twice):
        yield


@contextlib.contextmanager
def turned(turn: Turn, start: int) -> Iterator[None]:
    """The experts' outputs are heard otherwise than they are added up."""
    forward, added = Seam.forward, experts.Added

    def turning(seam: Seam, module: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> Any:
        def heard(expert: int, rows: torch.Tensor, outputs: torch.Tensor) -> Added:
            ranks = (ids[rows] == expert).int().argmax(dim=1)
            return added(expert, rows, torch.where((rows >= start)[:, None], turn(ranks, outputs), outputs))

        with mock.patch.object(experts, "Added", heard):
            return forward(seam, module, hidden, ids, weights)

    with mock.patch.object(Seam, "forward", turning):
        yield


@contextlib.contextmanager
def foretold(model: Any, ids: list[int], start: int, nats: float) -> Iterator[None]:
    """So much is added to the logit of each token that comes next."""
    rows = torch.arange(start, len(ids) - 1)

    def hook(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[0, rows, torch.tensor(ids)[rows + 1]] += nats
        return logits

    handle = model.get_output_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
