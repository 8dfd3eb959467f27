"""Which bytes of a checkpoint form each expert. Which tensors they lie in is sources.py, reading them is reader.py.

A model of the checkpoint's class is built on the meta device; each of its experts modules (a class that the library
decorates with its experts interface) has parameters stacked over experts. An expert's part of one is read directly
where its bytes lie as the model wants them: a tensor per expert and projection, merged and concatenated by the library,
or a slice of one stacked tensor. Otherwise the library's conversion is run on that expert alone: conversion.py.
"""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from segmoe.checkpoint import Checkpoint, TensorLocation
from segmoe.conversion import Recipe, Source
from segmoe.errors import CheckpointError, Unsupported
from segmoe.events import ExpertKey
from segmoe.sources import Sources, find_sources

ALIGNMENT = 64
"""Results of MKL in fp32 depend on an operand's address modulo 64, so slots reproduce the stock tensor's."""

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

logger = logging.getLogger(__name__)


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


def model_class(config: Any) -> Any:
    """The transformers class that the checkpoint's config names."""
    names = getattr(config, "architectures", None) or []
    found = getattr(transformers, names[0], None) if names else None
    if found is None:
        raise Unsupported(f"config.json names the class {names[0] if names else None!r}, which transformers lacks")
    return found


def is_experts_module(module: torch.nn.Module) -> bool:
    """Whether the module's class was decorated with the library's experts interface."""
    return hasattr(module, "_is_expert_parallel") and hasattr(type(module).forward, "__wrapped__")


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
        for expert in range(module.num_experts):
            key = ExpertKey(module.component, module.layer, expert)
            try:
                parts = tuple(
                    reading.parameter(f"{module.path}.{name}", expert, sources.get(f"{module.path}.{name}"))
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


def experts_modules(twin: torch.nn.Module) -> list[ExpertsModule]:
    """The experts modules of a model, in its order."""
    found = []
    for path, module in twin.named_modules():
        if not is_experts_module(module):
            continue
        match = re.match(r"(?:(?P<stack>.+?)\.)?\w+\.(?P<layer>\d+)\.", path)
        if match is None:
            raise Unsupported(f"the experts at {path} belong to no numbered layer")
        count = int(module.num_experts)
        stacked = tuple(
            name
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.dim() > 1 and len(parameter) == count
        )
        stack = match["stack"] or ""
        component, block = stack.split(".")[0] or "model", match[0].rstrip(".")
        layer, top_k = int(match["layer"]), _top_k(module.config)
        found.append(ExpertsModule(path, component, layer, stack, block, stacked, count, top_k))
    return _told_apart(found)


def _told_apart(modules: list[ExpertsModule]) -> list[ExpertsModule]:
    """Name the component more closely where a layer number of one root would mean several modules."""
    kinds = {module.path: re.sub(r"\.\d+\.", ".*.", module.path, count=1).split(".") for module in modules}
    found = []
    for module in modules:
        root = [other for other in modules if other.component == module.component]
        if len({other.layer for other in root}) < len(root):
            places = zip(*(kinds[other.path] for other in root), strict=False)
            place = next(number for number, names in enumerate(places) if len(set(names)) > 1)
            module = module._replace(component=f"{module.component}.{kinds[module.path][place]}")
        found.append(module)
    keys = [(module.component, module.layer) for module in found]
    if len(set(keys)) < len(keys):
        raise Unsupported(f"several experts modules have the same component and layer: {', '.join(kinds)}")
    return found


def _top_k(config: Any) -> int:
    for name in ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_k", "top_k"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise Unsupported(f"the config of {config.model_type} does not say how many experts a token picks")


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

    def parameter(self, full_name: str, expert: int, sources: Sources | None) -> ExpertParameter:
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
