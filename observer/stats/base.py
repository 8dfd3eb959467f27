"""What all estimators share: the evidence they take and how their state is kept. No statistic lives here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Index: TypeAlias = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picks:
    """The observed tokens of one layer and one context in their order, without padding."""

    layer: int  # row of the [layer, expert] arrays
    ids: Index  # [tokens, k]
    weights: Array  # [tokens, k] routing weight w
    c_norm: Array  # [tokens, k] |c|, c = w o
    impact: Array  # [tokens, k] 1 - cos(h, h - c)
    window: Index  # [tokens] which window of one text, ascending from 0 within this object
    text: Index | None = None  # [tokens] which text, ascending from 0 within this object; None: all of one
    before: Index | None = None  # [tokens, k] the same tokens' picks in the layer row before; None: not known
    is_contributing: bool = True  # c_norm and impact are known

    def sums(self, values: Array | None, experts: int) -> Array:
        """Sum of the values of each expert's picks (their number if there are none), shape [experts].

        >>> one = np.ones((2, 2))
        >>> p = Picks(layer=0, ids=np.array([[0, 2], [2, 1]]), weights=one, c_norm=one, impact=one, window=np.arange(2))
        >>> p.sums(np.array([[1.0, 2.0], [3.0, 4.0]]), experts=4).tolist()
        [1.0, 4.0, 5.0, 0.0]
        """
        weights = None if values is None else values.ravel()
        return np.bincount(self.ids.ravel(), weights, minlength=experts).astype(np.float64)

    def grouped(self, group: Index, groups: int, values: Array | None, experts: int) -> Array:
        """The same for each group of tokens, shape [groups, experts]; group is [tokens], in 0..groups - 1."""
        cell = (group[:, None] * experts + self.ids).ravel()
        weights = None if values is None else values.ravel()
        return np.bincount(cell, weights, minlength=groups * experts).astype(np.float64).reshape(groups, experts)


@dataclass(slots=True)
class Estimator:
    """A state of float64 arrays, [layer, expert] or, where named so, [layer, 1] or [layer, expert, expert].

    `update` takes evidence, `get` tells the figures, `merge` adds what another one of the same shape has seen.
    """

    PER_LAYER: ClassVar[frozenset[str]] = frozenset()
    PER_PAIR: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def zeros(cls, layers: int, experts: int) -> Self:
        """Return one that has seen nothing."""

        def shape(name: str) -> tuple[int, ...]:
            return (1,) if name in cls.PER_LAYER else (experts, experts) if name in cls.PER_PAIR else (experts,)

        return cls(**{f.name: np.zeros((layers, *shape(f.name))) for f in fields(cls)})

    def update(self, picks: Picks, /) -> None:
        """Take the evidence of one layer."""
        raise NotImplementedError

    def get(self) -> tuple[Array, ...]:
        """Tell the figures, as a NamedTuple of arrays."""
        raise NotImplementedError

    def merge(self, other: Self, /) -> None:
        """Add what the other has seen; exact for sums, which this default is for."""
        for f in fields(self):
            getattr(self, f.name)[...] += getattr(other, f.name)

    def to_state(self) -> dict[str, Array]:
        """Return a copy of the state."""
        return {f.name: getattr(self, f.name).copy() for f in fields(self)}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Self:
        """Go on from a copy of a state."""
        return cls(**{name: array.copy() for name, array in state.items()})


def ratio(part: Array, whole: Array) -> Array:
    """Part / whole, 0 where the whole is 0.

    >>> ratio(np.array([1.0, 1.0]), np.array([4.0, 0.0])).tolist()
    [0.25, 0.0]
    """
    part, whole = np.broadcast_arrays(part, whole)
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
