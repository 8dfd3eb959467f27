"""Which experts a layer will ask for, so that they can be read while the layer before computes, or attention.

What comes to one layer's experts is most of what comes to the next one's, so the next router is asked about it
(Eliseev and Mazur, "Fast inference of mixture-of-experts language models with offloading", 2023). The first routers are
also asked about what comes into their own layers, before attention: no experts come before the first layer, and where
embeddings are small beside what it makes of them, the second is guessed well only then. Of the embedded model's first
guesses for the second layer, .24 are right a layer before and .90 before attention. How often each guess was right is
learned as the model runs, and only what is likely enough is said: some experts of one token, nearly all of a long
prompt, and none where the state tells nothing.

Tried and left out:
- Reading less likely ones too, since a wrong guess costs little where it can be given up within: .995 [.984, 1.005] of
  the time at 0.5, .999 [.989, 1.010] at 0.35 (a decode pass, a quarter of 12 layers in memory).
- Asking all routers before attention as well: 1.00 and 1.02 of the time.
- Telling how likely a guess is by its logit's distance to those of the others instead of its rank: average precision
  .59 to .86, by rank .59 to .84 (12 layers of random weights); .72 to .84 and .70 to .82 (the embedded model).
- Bringing the state to the scale of the next layer's norm: guesses of the embedded model were right .01 more often.
- Asking the layers behind the next one too. Two layers ahead the first three guesses are right in .88, .76 and .66 (12
  layers of Qwen3-30B's width) or .91, .75 and .57 (the embedded model's last layer), three ahead in .73, .65 and .57 or
  .86, .66 and .48. With a quarter of 12 layers in memory and 20 places, .47 to .49 of what was missed was prefetched
  instead of .46, .20 to .27 was wasted instead of .15, and a missed expert took as long: what can be told for sure is
  read in time by the guess of the next layer alone; what is waited for are each token's last picks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segmoe.manifest import ExpertsModule

CERTAIN = 0.65
"""Least probability of an expert that is worth reading. Who is read for nothing keeps others waiting: with a quarter of
three layers of Qwen3-30B's width in memory, a missed expert took .954 [.928, .985] of the time that it took at 0.5 (and
as long at 0.8, where less is read); with a tenth of them, where few guesses find a place, there was no difference."""

NEAR_LAYERS = 2
"""First layers of a component that are guessed before attention. Others gained nothing that could be measured, and
lost a third of a millisecond each."""

LATELY = 1 / 16
"""A token's weight in how often guesses were right lately."""

ROWS = 256
"""Tokens of a pass that are asked about at most."""


class Router:
    """One layer's router, asked about a state that the layer has not come to yet.

    `right` is how often its first, second, ... guess of a token was among the token's picks, [k].
    """

    def __init__(self, weight: torch.Tensor, top_k: int) -> None:
        self.right = np.zeros(top_k)
        self._weight = weight
        self._guesses: NDArray[np.int64] | None = None  # [rows, k] of the pass under way

    def guess(self, hidden: torch.Tensor) -> list[int]:
        """The experts that at least one of the tokens [rows, hidden] picks with a probability of CERTAIN.

        The most probable first, to one decimal; among those as the layer will ask, from 0.
        With r how often a guess of a rank is right, P = 1 - product of (1 - r) over the tokens that guess the expert,
        as if guesses went wrong independently.
        """
        if hidden.shape[-1] != self._weight.shape[-1]:  # experts of a narrower state
            return []
        with torch.no_grad():
            rows = hidden[:: _stride(len(hidden))].to(self._weight.dtype)
            guesses = torch.nn.functional.linear(rows, self._weight).topk(len(self.right)).indices.cpu().numpy()
        self._guesses = guesses
        wrong = np.log1p(-np.minimum(self.right, 1 - 1e-9))
        unpicked = np.exp(np.bincount(guesses.ravel(), np.tile(wrong, len(guesses))))
        likely = np.flatnonzero(unpicked <= 1 - CERTAIN)
        return likely[np.argsort(unpicked[likely].round(1), kind="stable")].tolist()  # type: ignore[no-any-return]

    def learn(self, ids: torch.Tensor) -> None:
        """Compare what was guessed with what the same tokens then picked, [rows, k]."""
        guesses, self._guesses = self._guesses, None
        if guesses is None:
            return
        picked = ids[:: _stride(len(ids))].cpu().numpy()
        if len(picked) == len(guesses):
            found = (guesses[:, :, None] == picked[:, None, :]).any(-1).mean(0)
            self.right += (1 - (1 - LATELY) ** len(guesses)) * (found - self.right)


def find_routers(model: Any, places: Sequence[ExpertsModule]) -> Iterator[torch.Tensor | None]:
    """The weight of each experts module's router: the one matrix beside it with a row for each expert; None if not one.

    A guess needs no more than its weight: what families add to its logits changes little of who is first.
    """
    for place in places:
        around, _, experts = place.path.rpartition(".")
        beside = [
            parameter
            for name, parameter in model.get_submodule(around).named_parameters()
            if parameter.dim() == 2 and len(parameter) == place.num_experts and not name.startswith(f"{experts}.")
        ]
        yield beside[0] if len(beside) == 1 else None


def _stride(rows: int) -> int:
    return max(1, -(-rows // ROWS))
