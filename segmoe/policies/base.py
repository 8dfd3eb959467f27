"""What a cache asks of a policy. No policy lives here."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from segmoe.events import ExpertKey


class Victim(NamedTuple):
    """Who leaves, what the policy ranked it by, and who would have left instead."""

    key: ExpertKey
    score: float  # the lowest leaves
    next_candidate: ExpertKey | None
    trust: float | None = None  # the trust that the policy used, if it used any


class Policy(Protocol):
    """Ranks resident experts by what it has seen of them. Time is logical: forward passes and their tokens.

    The same calls give the same victims, on any machine and however long the passes took.
    """

    def begin(self, step: int, tokens: int) -> None:
        """A forward pass starts; `step` is its number, `tokens` how many it holds without padding."""

    def touch(self, key: ExpertKey) -> None:
        """This pass uses the expert, whether it was resident or has just been loaded; a pass counts it once."""

    def forget(self, key: ExpertKey) -> None:
        """The expert has left memory."""

    def victim(self, pinned: Container[ExpertKey], coming: ExpertKey | None = None) -> Victim | None:
        """The resident expert to evict for the one that is coming, or None if all are pinned. Changes nothing."""

    def state(self) -> dict[str, NDArray[Any]]:
        """All that later decisions depend on, but trust, which the policy is built with."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state; the policy has seen nothing yet."""
