"""A route trace in memory: which experts each forward pass used, in order. Files are read beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmoe.events import ExpertKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Accesses in their order. A pass accesses an expert once, however many of its tokens pick it."""

    expert: NDArray[np.int32]  # [accesses] number of the expert, an index into `keys`
    pass_index: NDArray[np.int32]  # [accesses] index into the columns by pass; does not fall
    tokens: NDArray[np.int64]  # [passes] without padding
    is_decode: NDArray[np.bool_]  # [passes]
    keys: Sequence[ExpertKey]  # [experts] every expert of the model, used or not
    nbytes: NDArray[np.int64]  # [experts]

    def __len__(self) -> int:
        return len(self.expert)

    @property
    def cycle(self) -> float:
        """Accesses per pass: below this a least-recently-used cache can hardly hit."""
        return len(self) / max(len(self.tokens), 1)

    @classmethod
    def of_picks(
        cls,
        pass_index: NDArray[np.integer],  # [picks]
        expert: NDArray[np.integer],  # [picks] index into `keys`, which are sorted by component and layer
        *,
        tokens: NDArray[np.integer],
        is_decode: NDArray[np.bool_],
        keys: Sequence[ExpertKey],
        nbytes: NDArray[np.integer],
    ) -> Trace:
        """The accesses that picks cause: in a pass each expert once, layers and experts ascending."""
        access = np.unique(pass_index.astype(np.int64) * len(keys) + expert)
        return cls(
            expert=(access % len(keys)).astype(np.int32),
            pass_index=(access // len(keys)).astype(np.int32),
            tokens=tokens.astype(np.int64),
            is_decode=is_decode,
            keys=keys,
            nbytes=nbytes.astype(np.int64),
        )

    def only(self, passes: NDArray[np.bool_]) -> Trace:
        """The chosen passes alone."""
        kept = passes[self.pass_index]
        number = (np.cumsum(passes) - 1).astype(np.int32)
        return Trace(
            expert=self.expert[kept],
            pass_index=number[self.pass_index[kept]],
            tokens=self.tokens[passes],
            is_decode=self.is_decode[passes],
            keys=self.keys,
            nbytes=self.nbytes,
        )

    def clock(self) -> NDArray[np.int64]:
        """Tokens up to and including each pass, [passes]: the time that policies decay by."""
        return np.cumsum(np.maximum(self.tokens, 1))


def in_order(expert: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """The order that puts equal numbers together and leaves them in theirs; numpy sorts 16 bits in linear time."""
    return np.argsort(expert.astype(np.uint16) if count <= np.iinfo(np.uint16).max + 1 else expert, kind="stable")
