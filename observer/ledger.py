"""All that one component has shown of its experts in one context. What an event is made of is observation.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from observer.grid import Grid
from observer.stats import Array, Blocks, Estimator, Magnitude, Picks, Texts, Usage, Windows
from observer.trust import DEFAULTS, TrustSettings, trust


class Scores(NamedTuple):
    """One column of `expert_trust` each; all [layer, expert] of one component."""

    trust: Array
    trust_low: Array
    trust_high: Array
    convergence: Array
    stability: Array
    efficiency: Array
    uses: NDArray[np.int64]
    blocks: NDArray[np.int64]
    load: Array
    weight_mean: Array
    ean: Array
    reap: Array
    impact_mean: Array
    block_mean: Array
    block_m2: Array
    windows: NDArray[np.int64]
    window_cv: Array


@dataclass(slots=True)
class Ledger:
    """The estimators of one component in one context, updated and merged together."""

    usage: Usage
    magnitude: Magnitude
    blocks: Blocks
    windows: Windows
    texts: Texts

    @classmethod
    def zeros(cls, grid: Grid) -> Self:
        """Return a ledger that has seen nothing."""
        shape = (len(grid.layers), grid.experts)
        return cls(
            Usage.zeros(*shape),
            Magnitude.zeros(*shape),
            Blocks.zeros(*shape),
            Windows.zeros(*shape),
            Texts.zeros(*shape),
        )

    @property
    def parts(self) -> tuple[Estimator, ...]:
        """All estimators."""
        return (self.usage, self.magnitude, self.blocks, self.windows, self.texts)

    def update(self, picks: Picks) -> None:
        """Take the evidence of one layer; without contributions, only what routing alone tells."""
        for part in self.parts:
            if picks.is_contributing or isinstance(part, (Usage, Texts)):
                part.update(picks)

    def merge(self, other: Ledger) -> None:
        """Add what another ledger of the same component has seen; open blocks end here."""
        for mine, others in zip(self.parts, other.parts, strict=True):
            mine.merge(others)

    def closed(self, *, rest_counts: bool) -> Ledger:
        """Return a copy without open blocks; at the end of a run a rest that is long enough counts as one."""
        copy = Ledger.from_state(self.to_state())
        copy.blocks = self.blocks.closed(rest_counts=rest_counts)
        return copy

    def to_state(self) -> dict[str, dict[str, Array]]:
        """Return a copy of the state, by estimator."""
        return {type(part).__name__: part.to_state() for part in self.parts}

    @classmethod
    def from_state(cls, state: dict[str, dict[str, Array]]) -> Ledger:
        """Go on from a copy of a state."""
        return cls(
            Usage.from_state(state["Usage"]),
            Magnitude.from_state(state["Magnitude"]),
            Blocks.from_state(state["Blocks"]),
            Windows.from_state(state["Windows"]),
            Texts.from_state(state["Texts"]),
        )

    def scores(self, grid: Grid, settings: TrustSettings = DEFAULTS) -> Scores:
        """Tell trust, its parts and the plain statistics of every expert of the component."""
        usage, magnitude, blocks = self.usage.get(), self.magnitude.get(), self.blocks.get()
        windows = self.windows.get()
        scored = trust(
            blocks,
            windows,
            impact_sum=magnitude.impact_sum,
            uses=usage.uses,
            expert_bytes=grid.bytes,
            settings=settings,
        )
        return Scores(
            *scored,
            uses=usage.uses.astype(np.int64),
            blocks=np.broadcast_to(blocks.blocks, usage.uses.shape).astype(np.int64),
            load=usage.load,
            weight_mean=usage.weight_mean,
            ean=magnitude.ean,
            reap=magnitude.reap,
            impact_mean=magnitude.impact_mean,
            block_mean=blocks.mean,
            block_m2=blocks.m2,
            windows=windows.windows.astype(np.int64),
            window_cv=windows.cv,
        )
