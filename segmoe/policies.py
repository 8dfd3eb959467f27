"""Who leaves memory next: pure functions of logical time. Holding the experts is cache.py."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from segmoe.errors import ConfigError
from segmoe.events import ExpertKey


class Victim(NamedTuple):
    """Who leaves, what the policy ranked it by, and who would have left instead."""

    key: ExpertKey
    score: float  # the lowest leaves
    next_candidate: ExpertKey | None


class Policy(Protocol):
    """Ranks resident experts by what it has seen of them; time is the forward pass's number."""

    def touch(self, key: ExpertKey, step: int) -> None:
        """The expert is used, whether it was resident or has just been loaded."""

    def forget(self, key: ExpertKey) -> None:
        """The expert has left memory."""

    def victim(self, pinned: Container[ExpertKey]) -> Victim | None:
        """The resident expert to evict, or None if all are pinned. Changes nothing."""

    def state(self) -> dict[str, NDArray[Any]]:
        """All that later decisions depend on."""

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state."""


class Lru:
    """Least recently used; its score is the step of the last use."""

    def __init__(self) -> None:
        self._last_step: OrderedDict[ExpertKey, int] = OrderedDict()  # least recent first

    def touch(self, key: ExpertKey, step: int) -> None:
        """Make the expert the most recent."""
        self._last_step[key] = step
        self._last_step.move_to_end(key)

    def forget(self, key: ExpertKey) -> None:
        """Drop the expert's history."""
        del self._last_step[key]

    def victim(self, pinned: Container[ExpertKey]) -> Victim | None:
        """The least recent expert that is not pinned."""
        order = (key for key in self._last_step if key not in pinned)
        first = next(order, None)
        return None if first is None else Victim(first, float(self._last_step[first]), next(order, None))

    def state(self) -> dict[str, NDArray[Any]]:
        """The experts in their order."""
        keys = list(self._last_step)
        return {
            "component": np.array([key.component for key in keys], dtype=np.str_),
            "numbers": np.array([(k.layer, k.expert, s) for k, s in self._last_step.items()], dtype=np.int64),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take the experts in their order."""
        rows = zip(state["component"].tolist(), state["numbers"].tolist(), strict=True)
        self._last_step = OrderedDict((ExpertKey(name, layer, expert), step) for name, (layer, expert, step) in rows)


POLICIES: dict[str, Callable[[], Policy]] = {"lru": Lru}


def make_policy(name: str) -> Policy:
    """Build a policy by its name."""
    if name not in POLICIES:
        raise ConfigError(f"there is no policy {name!r}; choose one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name]()
