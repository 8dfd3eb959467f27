"""What a checkpoint holds: each expert's bytes and what is missing. How they are found is locating.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from segmoe.checkpoint import Checkpoint
from segmoe.conversion import Recipe
from segmoe.errors import CheckpointError
from segmoe.events import ExpertKey

ALIGNMENT = 64
"""Results of MKL in fp32 depend on an operand's address modulo 64, so slots reproduce the stock tensor's."""


class Piece(NamedTuple):
    """A run of bytes to copy from a file into a parameter of one expert."""

    file: Path
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertParameter:
    """One expert's part of a stacked parameter."""

    name: str  # of the attribute, such as gate_up_proj
    dtype: torch.dtype
    shape: tuple[int, ...]  # of one expert
    nbytes: int
    address: int  # of its first byte in the stock model, modulo ALIGNMENT
    pieces: tuple[Piece, ...]  # in order; without a recipe they fill nbytes
    recipe: Recipe | None = None  # how the library makes the parameter of the pieces, if not one behind the other
    is_linear: bool = False  # known to be multiplied by F.linear alone, never as x @ w


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Everything that one expert needs in memory."""

    key: ExpertKey
    parameters: tuple[ExpertParameter, ...]
    nbytes: int


class MissingExpert(NamedTuple):
    """An expert that the checkpoint does not hold whole."""

    key: ExpertKey
    tensor: str  # the first that is absent

    def __str__(self) -> str:
        return f"{self.key.component} layer {self.key.layer} expert {self.key.expert} ({self.tensor})"


class ExpertsModule(NamedTuple):
    """An experts module of the model."""

    path: str  # as in named_modules()
    component: str
    layer: int
    stack: str  # path of the module that runs the layers, empty for the model itself
    block: str  # path of the layer
    parameters: tuple[str, ...]
    num_experts: int
    top_k: int  # experts that a token picks

    @property
    def root(self) -> str:
        """The part of the model whose passes this module takes part in: `thinker`, `talker` or `model`."""
        return self.component.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All experts of a checkpoint and where they lie."""

    checkpoint: Checkpoint
    family: str  # config.model_type
    modules: tuple[ExpertsModule, ...]
    experts: Mapping[ExpertKey, Segment]  # those that are whole
    missing: tuple[MissingExpert, ...]
    missing_others: tuple[str, ...]  # parameters of the model that no tensor fills, experts apart

    @property
    def folder(self) -> Path:
        """Where the checkpoint is."""
        return self.checkpoint.folder

    @property
    def digest(self) -> str:
        """The checkpoint's digest."""
        return self.checkpoint.digest

    @property
    def other_bytes(self) -> int:
        """Of all weights but experts."""
        return self.checkpoint.nbytes - sum(segment.nbytes for segment in self.experts.values())

    @property
    def token_cycle(self) -> dict[str, int]:
        """Experts touched by one token of each component: the sum of top-k over its layers."""
        cycle: dict[str, int] = defaultdict(int)
        for module in self.modules:
            cycle[module.component] += module.top_k
        return dict(cycle)

    def require_complete(self) -> None:
        """Raise CheckpointError with what is missing, if anything is: an incomplete checkpoint does not run."""
        lost = self.checkpoint.lost
        if not (self.missing or self.missing_others or lost):
            return
        shards = sorted(set(lost.values()))
        tensors = len(lost) + len(self.checkpoint.tensors)
        parts = []
        if shards:
            shown = f"{', '.join(shards[:3])}{', ...' if len(shards) > 3 else ''}"
            parts.append(f"lacks {len(shards)} shards ({shown}) with {len(lost):,} of {tensors:,} tensors")
        if self.missing:
            total = len(self.missing) + len(self.experts)
            shown = "; ".join(str(expert) for expert in self.missing[:3])
            parts.append(f"lacks {len(self.missing):,} of {total:,} experts, first {shown}")
        if self.missing_others:
            shown = f"{', '.join(self.missing_others[:3])}{', ...' if len(self.missing_others) > 3 else ''}"
            parts.append(f"lacks {len(self.missing_others):,} other weights ({shown})")
        raise CheckpointError(
            f"{self.folder} is incomplete: it {' and '.join(parts)}; `segmoe inspect` lists all; download it again"
        )
