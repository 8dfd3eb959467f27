"""What the dimensions of salience claim to measure, measured without the observer: its cause.

A text goes through the stock model in float64, and what its routers, experts and head do is looked at directly. A score
is right if it moves where, and only where, its cause does (convergent and discriminant validity, Campbell and Fiske
1959). What follows was written down before any cause was compared with a score, as were the borders of validity.py.

- surprise: mean over picks and layers of -ln p(expert), p how often each expert of the layer was picked in the 12
  windows before, counts plus one. The score is a divergence of distributions in which a pick weighs by its rank.
  Other cause: Pearson's chi-squared of the window's picks against those of the 12 windows.
- novelty: share of the window's pairs (layer, i, j) that were picked by one token at most 3 times in all that was read
  before. The score is a mean of 1 / sqrt(1 + count). Other causes: at most 0, at most 10 times.
- arousal: mean over tokens and layers of the entropy of the router's softmax over all experts, over ln E. The score
  knows the picks' weights only.
- reward: minus the mean cross entropy of the next token. It is the score's own figure: what is tested is how it is
  captured, and that to compare it with what was usual lately keeps it.
- conflict: mean over tokens and layers of 1 - mean cosine over pairs of the picked experts' outputs. The score's figure
  is (1 - 1/k) times it, computed from a sum of unit vectors that a running model tells: as with reward.

Windows are of 32 tokens; what was read before is told by `Past`. Added afterwards, to find out why novelty did not keep
to its cause, which is 0 in half of all windows: minus the mean of ln(1 + count) over the window's pairs.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

Array = NDArray[np.float64]
Index = NDArray[np.int64]

WINDOW = 32  # tokens
LATELY = 12  # windows
SELDOM = 3  # times
CAUSES = ("surprise", "novelty", "arousal", "reward", "conflict")
OTHERS = {
    "surprise by chi-squared": 0,
    "novelty of unseen pairs": 1,
    "novelty of pairs seen at most 10 times": 1,
    "novelty by ln(1 + count)": 1,
}
"""Other causes, in the columns after the five, and the dimension that each is a cause of."""


class Reading(NamedTuple):
    """What the stock model did at each token of a text."""

    picks: Index  # [tokens, layers, k]
    entropy: Array  # [tokens, layers] of the router over all experts, 1 where it prefers none
    apart: Array  # [tokens, layers] 1 - mean cosine over pairs of the picked experts' outputs
    loss: Array  # [tokens] of the next token in nats; NaN for the last
    entered: torch.Tensor  # [tokens, layers, hidden] what came to the experts


class Stock:
    """The stock model."""

    def __init__(self, folder: Any) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float64, experts_implementation="eager"
        ).eval()
        self.k = self.model.config.num_experts_per_tok
        self.experts = self.model.config.num_experts

    @torch.inference_mode()
    def read(self, texts: list[list[int]]) -> list[Reading]:
        """Read texts of one length in one batch."""
        ids = torch.tensor(texts)
        entered: list[torch.Tensor] = []
        blocks = [layer.mlp for layer in self.model.model.layers]
        hooks = [block.register_forward_pre_hook(lambda _, args: entered.append(args[0])) for block in blocks]
        try:
            output = self.model(input_ids=ids, use_cache=False, output_router_logits=True)
        finally:
            for hook in hooks:
                hook.remove()
        logits = torch.stack([of_layer.view(*ids.shape, -1) for of_layer in output.router_logits], dim=2)
        hidden, picks = torch.stack(entered, dim=2), logits.topk(self.k).indices
        entropy = torch.distributions.Categorical(logits=logits).entropy() / np.log(logits.shape[-1])
        loss = F.cross_entropy(output.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        loss = F.pad(loss, (0, 1), value=torch.nan)
        apart = self.apart(hidden.flatten(0, 1), picks.flatten(0, 1)).view(entropy.shape)
        return [
            Reading(picks[i].numpy(), entropy[i].numpy(), apart[i].numpy(), loss[i].numpy(), hidden[i])
            for i in range(len(texts))
        ]

    def picking(self, reading: Reading, picks: Index) -> Reading:
        """The same text, had its tokens picked these experts and gone on as they did."""
        with torch.inference_mode():
            apart = self.apart(reading.entered, torch.from_numpy(picks)).numpy()
        return reading._replace(picks=picks, apart=apart)

    def apart(self, entered: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
        """1 - mean cosine over pairs of outputs, [tokens, layers]."""
        first, second = torch.triu_indices(self.k, self.k, 1)
        found = []
        for layer in range(picks.shape[1]):
            outputs = self.outputs(layer, entered[:, layer], picks[:, layer])
            found.append(1.0 - F.cosine_similarity(outputs[:, first], outputs[:, second], dim=-1).mean(dim=1))
        return torch.stack(found, dim=1)

    def outputs(self, layer: int, entered: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
        """What each picked expert makes of its token, unweighted, [tokens, k, hidden]."""
        experts = self.model.model.layers[layer].mlp.experts
        result = entered.new_zeros(*picks.shape, entered.shape[1])
        for expert in picks.unique():
            token, rank = torch.where(picks == expert)
            gate, up = F.linear(entered[token], experts.gate_up_proj[expert]).chunk(2, dim=-1)
            result[token, rank] = F.linear(F.silu(gate) * up, experts.down_proj[expert])
        return result


class Past:
    """What was picked in the windows read before."""

    def __init__(self, layers: int, experts: int) -> None:
        self.lately: deque[Array] = deque(maxlen=LATELY)
        self.pairs = np.zeros((layers, experts, experts), np.int64)

    def read(self, picks: Index) -> Array:
        """Surprise, novelty and the other causes of each window, [window, 6]; then the text is past.

        `picks` are a text's, [tokens, layers, k].
        """
        return np.array([self._window(picks[start : start + WINDOW]) for start in range(0, len(picks), WINDOW)])

    def _window(self, picks: Index) -> tuple[float, ...]:
        layers, experts = self.pairs.shape[:2]
        now = np.stack([np.bincount(picks[:, layer].ravel(), minlength=experts) for layer in range(layers)])
        before = np.sum(self.lately, axis=0) if self.lately else np.zeros(now.shape)
        first, second = np.triu_indices(picks.shape[2], 1)
        ordered = np.sort(picks, axis=2)
        place = np.arange(layers)[:, None], ordered[..., first], ordered[..., second]
        seen = self.pairs[place]
        np.add.at(self.pairs, place, 1)
        self.lately.append(now.astype(np.float64))
        seldom, never, often = (float((seen <= times).mean()) for times in (SELDOM, 0, 10))
        return surprisal(now, before), seldom, chi_squared(now, before), never, often, -float(np.log1p(seen).mean())


def surprisal(now: Array, before: Array) -> float:
    """-ln p of a pick, mean over picks and layers; both are counts [layer, expert].

    >>> round(float(np.exp(surprisal(np.array([[2.0, 0.0]]), np.array([[1.0, 5.0]])))), 9)  # of 8, 2 are the first's
    4.0
    """
    smoothed = before + 1.0
    return float(-(now * np.log(smoothed / smoothed.sum(axis=1, keepdims=True))).sum() / now.sum())


def chi_squared(now: Array, before: Array) -> float:
    """Pearson's statistic of two rows of counts, mean over layers; 0 where nothing was before.

    >>> round(chi_squared(np.array([[10.0, 0.0]]), np.array([[10.0, 20.0]])), 9)  # expected 5, 5; 15, 15
    13.333333333
    """
    if not before.any():
        return 0.0
    both = np.stack((now, before))
    expected = both.sum(axis=0) * both.sum(axis=2, keepdims=True) / both.sum(axis=(0, 2))[:, None]
    terms = np.divide((both - expected) ** 2, expected, out=np.zeros_like(both), where=expected > 0)
    return float(terms.sum(axis=(0, 2)).mean())


def causes(reading: Reading, past: Past) -> Array:
    """The causes of each window of a text read after `past`, which stays as it is: [window, 5 + 4]."""
    surprise, novelty, *others = copy.deepcopy(past).read(reading.picks).T
    cuts = range(WINDOW, len(reading.picks), WINDOW)
    arousal, reward, conflict = (
        np.array([np.nanmean(part) for part in np.split(values, cuts)])
        for values in (reading.entropy, -reading.loss, reading.apart)
    )
    return np.stack((surprise, novelty, arousal, reward, conflict, *others), axis=1)
