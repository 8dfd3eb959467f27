"""Which bytes of a checkpoint form each expert. Which tensors they lie in is sources.py, reading them is reader.py.

A model of the checkpoint's class is built on the meta device; each of its experts modules (a class that the library
decorates with its experts interface) has parameters stacked over experts. An expert's part of one is read directly
where its bytes lie as the model wants them: a tensor per expert and projection, merged and concatenated by the library,
or a slice of one stacked tensor. Otherwise the library's conversion is run on that expert alone: conversion.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from segmoe import eager_loop
from segmoe.checkpoint import Checkpoint, TensorLocation
from segmoe.conversion import Recipe, Source
from segmoe.errors import CheckpointError, Unsupported
from segmoe.events import ExpertKey
from segmoe.manifest import ALIGNMENT, ExpertParameter, Manifest, MissingExpert, Piece, Segment
from segmoe.modules import experts_modules, model_class
from segmoe.sources import Sources, find_sources

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def build_manifest(checkpoint: Checkpoint, config: Any) -> Manifest:
    """Find every expert's bytes; what is not there whole is listed in `missing`."""
    with torch.device("meta"):
        twin = model_class(config)._from_config(config)
    modules = tuple(experts_modules(twin))
    if not modules:
        raise Unsupported(f"{checkpoint.folder} ({config.model_type}) has no experts behind transformers' interface")
    if getattr(config, "quantization_config", None) is not None:
        raise Unsupported(f"{checkpoint.folder} is quantized; only fp32, fp16 and bf16 checkpoints can be run exactly")
    expert_names = {f"{module.path}.{name}" for module in modules for name in module.parameters}
    sources, others = find_sources(checkpoint, twin, expert_names)
    reading = _Reading(twin)
    experts: dict[ExpertKey, Segment] = {}
    missing: list[MissingExpert] = []
    for module in modules:
        is_linear = eager_loop.is_known(type(twin.get_submodule(module.path)).forward.__wrapped__)
        for expert in range(module.num_experts):
            key = ExpertKey(module.component, module.layer, expert)
            try:
                parts = tuple(
                    reading.parameter(f"{module.path}.{name}", expert, sources.get(f"{module.path}.{name}"), is_linear)
                    for name in module.parameters
                )
            except KeyError as absent:
                missing.append(MissingExpert(key, absent.args[0]))
                continue
            experts[key] = Segment(key=key, parameters=parts, nbytes=sum(part.nbytes for part in parts))
    return Manifest(
        checkpoint=checkpoint,
        family=config.model_type,
        modules=modules,
        experts=experts,
        missing=tuple(missing),
        missing_others=tuple(_missing_others(twin, others | expert_names)),
    )


def _missing_others(twin: Any, present: set[str]) -> Iterator[str]:
    tied = getattr(twin, "all_tied_weights_keys", {})
    for name in twin.state_dict():
        if name not in present and tied.get(name) not in present:
            yield name


class _Part(NamedTuple):
    """One expert's part of a checkpoint tensor."""

    piece: Piece
    dtype: str
    shape: tuple[int, ...]
    is_stacked: bool


class _Reading:
    """Describes parameters expert by expert; the trial of a conversion is made once for all that look alike."""

    def __init__(self, twin: Any) -> None:
        self._config = twin.config
        named = twin.named_parameters(remove_duplicate=False)  # some are tied
        self._shapes = {name: tuple(parameter.shape) for name, parameter in named}
        self._trials: dict[tuple[Any, ...], str] = {}

    def parameter(self, full_name: str, expert: int, sources: Sources | None, is_linear: bool) -> ExpertParameter:
        """Describe one expert's part; a KeyError names the first tensor that is absent."""
        name = full_name.rpartition(".")[2]
        if sources is None:
            raise KeyError(name)
        count, *one = self._shapes[full_name]
        shape = tuple(one)
        index = sources.share * count + expert
        parts = [
            _part(pattern, by_expert, index, count)
            for pattern, by_expert in zip(sources.names, sources.tensors, strict=True)
        ]
        stored = {part.dtype for part in parts}
        if len(stored) > 1:
            raise CheckpointError(f"{full_name} of expert {expert} mixes {' and '.join(sorted(stored))}")
        if not stored <= DTYPES.keys():
            raise Unsupported(
                f"{full_name} of expert {expert} is stored as {parts[0].dtype}; only F32, F16 and BF16 run exactly"
            )
        dtype = DTYPES[parts[0].dtype]
        nbytes = math.prod(shape) * dtype.itemsize
        address = expert * nbytes
        recipe = None
        if not sources.is_plain:
            recipe = self._recipe(sources, parts)
            if self._trial(recipe) == "as stored":
                recipe = None
        if recipe is None and parts[0].is_stacked:
            address = parts[0].piece.offset
        if recipe is None and not _fits(parts, shape):
            shapes = " and ".join(str(part.shape) for part in parts)
            raise CheckpointError(f"{full_name} of expert {expert} has shape {shapes}, the model needs {shape}")
        return ExpertParameter(
            name=name,
            dtype=dtype,
            shape=shape,
            nbytes=nbytes,
            address=address % ALIGNMENT // dtype.itemsize * dtype.itemsize,  # torch has no tensors at odd addresses
            pieces=tuple(part.piece for part in parts),
            recipe=recipe,
            is_linear=is_linear,
        )

    def _recipe(self, sources: Sources, parts: list[_Part]) -> Recipe:
        return Recipe(
            converter=sources.converter,
            config=self._config,
            parameter=sources.parameter,
            first=sources.made[0],
            shapes={made: self._shapes[made][1:] for made in sources.made},
            sources=tuple(
                Source(name, part.shape, part.is_stacked) for name, part in zip(sources.names, parts, strict=True)
            ),
        )

    def _trial(self, recipe: Recipe) -> str:
        place = (id(recipe.converter), recipe.sources, recipe.shapes[recipe.parameter])
        if place not in self._trials:
            self._trials[place] = recipe.trial()
        return self._trials[place]


def _part(name: str, by_expert: dict[int | None, TensorLocation], index: int, count: int) -> _Part:
    part = by_expert.get(index)
    if part is not None:
        return _Part(Piece(part.file, part.offset, part.nbytes), part.dtype, part.shape, False)
    whole = by_expert.get(None)
    if whole is None:
        raise KeyError(name.replace("*", str(index)))
    if whole.shape[:1] != (count,):
        raise CheckpointError(f"{name} has shape {whole.shape}, the model needs {count} experts")
    nbytes = whole.nbytes // count
    return _Part(Piece(whole.file, whole.offset + index * nbytes, nbytes), whole.dtype, whole.shape[1:], True)


def _fits(parts: list[_Part], shape: tuple[int, ...]) -> bool:
    """Whether the parts, one behind the other, have the shape."""
    if len(parts) == 1:
        return parts[0].shape == shape
    return all(part.shape[1:] == shape[1:] for part in parts) and sum(part.shape[0] for part in parts) == shape[0]
