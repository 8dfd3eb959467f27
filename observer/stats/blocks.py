"""The pull of each expert per block of tokens, the evidence for convergence. What follows from it is trust.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from observer.stats.base import Array, Estimator, Picks
from observer.stats.moments import Moments

PULL_EXPONENT = 1.5
"""A turn of the state by an angle a has impact 1 - cos a, about a^2 / 2, and costs more than in proportion: small
turns are made good by what follows. Of the powers of impact between 1 and 3 those from 1.25 to 1.75 foretell the cost
of removal best (`python -m tests.benchmarks.definitions`)."""

BLOCK_TOKENS = 256
"""Tokens of one text are not independent: a block stands for one observation. With blocks of 128 tokens 90% intervals
of the embedded model's experts held 87% of what other texts gave, with 256 they hold 90%."""

REST_TOKENS = 128
"""The rest at the end of a run is evidence from this length on: half a block."""


class BlockFigures(NamedTuple):
    """What the full blocks say."""

    blocks: Array  # [layer, 1] J
    mean: Array  # [layer, expert] mean of s_j
    m2: Array  # [layer, expert] sum of (s_j - mean)^2


@dataclass(slots=True)
class Blocks(Estimator):
    """Moments of s_j = (sum of the expert's impact^1.5 in block j) / (tokens in block j).

    A block is 256 observed tokens of one context that follow each other; the rest of a text is continued by the next
    text. Only full blocks are evidence; `closed` turns the last rest into one if it is long enough.

    >>> tokens = np.zeros((400, 1), dtype=np.intp)
    >>> half = np.full((400, 1), 0.25)
    >>> b = Blocks.zeros(layers=1, experts=2)
    >>> b.update(Picks(layer=0, ids=tokens, weights=half, c_norm=half, impact=half, window=tokens[:, 0]))
    >>> int(b.get().blocks[0, 0]), b.get().mean.tolist(), int(b.open_tokens[0, 0])
    (1, [[0.125, 0.0]], 144)
    >>> int(b.closed().get().blocks[0, 0])  # 144 >= 128
    2
    """

    PER_LAYER: ClassVar[frozenset[str]] = frozenset({"blocks", "open_tokens"})

    blocks: Array
    mean: Array
    m2: Array
    open_tokens: Array
    open_pull: Array

    def update(self, picks: Picks, /) -> None:
        """Fill the open block of the layer, and as many more as the tokens are enough for."""
        tokens, experts, layer = len(picks.ids), self.mean.shape[1], picks.layer
        if tokens == 0:
            return
        began = int(self.open_tokens[layer, 0])
        block = (began + np.arange(tokens)) // BLOCK_TOKENS
        sums = picks.grouped(block, int(block[-1]) + 1, picks.impact**PULL_EXPONENT, experts)
        sums[0] += self.open_pull[layer]
        full, rest = divmod(began + tokens, BLOCK_TOKENS)
        self._add(layer, sums[:full] / BLOCK_TOKENS)
        self.open_tokens[layer] = rest
        self.open_pull[layer] = sums[full] if rest else 0.0

    def closed(self, *, rest_counts: bool = True) -> Blocks:
        """Return a copy without open blocks: a rest of 128 tokens or more is a block if it counts at all, else none."""
        copy = Blocks.from_state(self.to_state())
        for layer in np.flatnonzero(rest_counts & (self.open_tokens[:, 0] >= REST_TOKENS)):
            copy._add(int(layer), self.open_pull[layer][None] / self.open_tokens[layer, 0])
        copy.open_tokens[...] = 0.0
        copy.open_pull[...] = 0.0
        return copy

    def merge(self, other: Blocks, /) -> None:
        """Add the other's blocks; the open rests of both end here, so it equals one pass if both ended at a border."""
        mine, others = self.closed(), other.closed()
        both = Moments(mine.blocks, mine.mean, mine.m2).plus(Moments(others.blocks, others.mean, others.m2))
        self.blocks, self.mean, self.m2 = both
        self.open_tokens, self.open_pull = mine.open_tokens, mine.open_pull

    def get(self) -> BlockFigures:
        """Tell the moments of the full blocks."""
        return BlockFigures(self.blocks.copy(), self.mean.copy(), self.m2.copy())

    def _add(self, layer: int, blocks: Array) -> None:
        """Add blocks [n, expert] of pull per token to the moments of a layer."""
        if len(blocks) == 0:
            return
        before = Moments(self.blocks[layer], self.mean[layer], self.m2[layer])
        new = Moments.of(blocks, np.ones(blocks.shape, dtype=np.bool_))
        _, self.mean[layer], self.m2[layer] = before.plus(new)
        self.blocks[layer] += len(blocks)
