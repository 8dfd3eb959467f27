"""transformers' own weight conversion, run on one expert at a time. Which tensors it is given is locating.py.

Most checkpoints need none of it: an expert's bytes lie in the file as the model wants them. Where a family's mapping
transposes, interleaves or joins stacked tensors, the library's converter is called as if there were one expert, after
a trial that two experts converted together are what each of them is alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from segmoe.errors import Unsupported


class Source(NamedTuple):
    """What a recipe is given for each expert."""

    pattern: str  # of the converter
    shape: tuple[int, ...]  # of one expert's tensor as stored
    is_stacked: bool  # in a tensor over all experts, or alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the stored tensors of one expert become its part of a parameter."""

    converter: Any  # transformers' WeightConverter; used through copies, since it collects its tensors in itself
    config: Any
    parameter: str  # full name in the model
    first: str  # full name of the first parameter that the converter makes, by which the library calls it
    shapes: Mapping[str, tuple[int, ...]]  # of one expert, by the full names of all that the converter makes
    sources: tuple[Source, ...]

    def make(self, stored: Sequence[torch.Tensor]) -> torch.Tensor:
        """One expert's parameter, from its tensors in the order of the sources."""
        return self._convert([[tensor] for tensor in stored])[0]

    def trial(self) -> Literal["as stored", "converted"]:
        """Say whether anything is done to the bytes at all; raise Unsupported if experts cannot be converted alone."""
        try:
            pairs = _random_pairs(self.sources)
            given = [torch.stack(pair) if s.is_stacked else pair for s, pair in zip(self.sources, pairs, strict=True)]
            together = self._convert(given)
            alone = [self.make([pair[expert] for pair in pairs]) for expert in (0, 1)]
            fits = together.is_contiguous() and together.shape == (2, *self.shapes[self.parameter])
            if fits and all(torch.equal(one, both) for one, both in zip(alone, together, strict=True)):
                is_same = any(isinstance(s, torch.Tensor) and s.data_ptr() == together.data_ptr() for s in given)
                return "as stored" if is_same else "converted"
            reason = "two experts together are not what each is alone"
        except (ValueError, RuntimeError, KeyError, IndexError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
        chain = ", ".join(type(operation).__name__ for operation in self.converter.operations)
        raise Unsupported(
            f"{self.parameter} comes from {', '.join(s.pattern for s in self.sources)} through {chain}, "
            f"which cannot be done expert by expert ({reason}); save the checkpoint once with transformers' "
            f"save_pretrained(save_original_format=False) and load that"
        )

    def _convert(self, given: Sequence[list[torch.Tensor] | torch.Tensor]) -> torch.Tensor:
        converter = copy.deepcopy(self.converter)
        count = len(given[0])
        for source, tensors in zip(self.sources, given, strict=True):
            if source.is_stacked and isinstance(tensors, list):
                tensors = torch.stack(tensors)
            for tensor in [tensors] if isinstance(tensors, torch.Tensor) else tensors:
                converter.add_tensor(self.first, source.pattern, source.pattern, tensor)
        made = converter.convert(self.first, model=_Shapes(self.shapes, count), config=self.config)
        tensor = made[self.parameter]
        result: torch.Tensor = tensor[0] if isinstance(tensor, list) else tensor
        return result


def _random_pairs(sources: Sequence[Source]) -> list[list[torch.Tensor]]:
    """Two experts' tensors for each source, in bytes: real experts are large, and nothing is computed with them."""
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randint(256, source.shape, dtype=torch.uint8, generator=generator) for _ in (0, 1)] for source in sources
    ]


class _Shapes:
    """Stands for the model in a conversion: its parameters have the shape for so many experts."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], count: int) -> None:
        self._shapes = shapes
        self._count = count

    def get_parameter(self, name: str) -> torch.Tensor:
        """As the model's own."""
        return torch.empty((self._count, *self._shapes[name]), device="meta")
