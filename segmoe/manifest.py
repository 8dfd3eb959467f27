"""Which bytes of a checkpoint form each expert, by transformers' own conversion mapping. Reading them is reader.py.

A model of the checkpoint's class is built on the meta device; each of its experts modules (a class that the library
decorates with its experts interface) has parameters stacked over experts. The library's mapping tells which
checkpoint tensors form such a parameter. Two layouts cover what is on the hub: one tensor per expert and projection,
merged and concatenated by the library, and one stacked tensor, of which an expert is a slice.
"""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from segmoe.checkpoint import Checkpoint, TensorLocation
from segmoe.errors import CheckpointError, Unsupported
from segmoe.events import ExpertKey

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
    pieces: tuple[Piece, ...]  # in order, filling nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Everything that one expert needs in memory."""

    key: ExpertKey
    parameters: tuple[ExpertParameter, ...]
    nbytes: int


class ExpertsModule(NamedTuple):
    """An experts module of the model."""

    path: str  # as in named_modules()
    component: str
    layer: int
    parameters: tuple[str, ...]
    num_experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All experts of a checkpoint and where they lie."""

    folder: Path
    digest: str
    family: str  # config.model_type
    top_k: int  # experts a token picks in each layer
    modules: tuple[ExpertsModule, ...]
    experts: Mapping[ExpertKey, Segment]

    @property
    def token_cycle(self) -> int:
        """Experts touched by one token: layers times top-k."""
        return len(self.modules) * self.top_k


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
    """Find every expert's bytes; raise CheckpointError that names what is missing."""
    with torch.device("meta"):
        twin = model_class(config)._from_config(config)
    modules = tuple(_experts_modules(twin))
    if not modules:
        raise Unsupported(f"{checkpoint.folder} ({config.model_type}) has no experts behind transformers' interface")
    if getattr(config, "quantization_config", None) is not None:
        raise Unsupported(f"{checkpoint.folder} is quantized; only fp32, fp16 and bf16 checkpoints can be run exactly")
    sources = _sources(checkpoint, twin)
    shapes = {name: tuple(parameter.shape) for name, parameter in twin.named_parameters()}
    experts: dict[ExpertKey, Segment] = {}
    missing: list[str] = []
    for module in modules:
        for expert in range(module.num_experts):
            key = ExpertKey(module.component, module.layer, expert)
            try:
                parts = tuple(
                    _expert_parameter(name, expert, shapes[f"{module.path}.{name}"], sources[f"{module.path}.{name}"])
                    for name in module.parameters
                )
            except KeyError as absent:
                missing.append(f"{key.component} layer {key.layer} expert {key.expert} ({absent.args[0]})")
                continue
            experts[key] = Segment(key=key, parameters=parts, nbytes=sum(part.nbytes for part in parts))
    if missing:
        total = sum(module.num_experts for module in modules)
        raise CheckpointError(
            f"{checkpoint.folder} is incomplete: {len(missing):,} of {total:,} experts are missing, "
            f"first {'; '.join(missing[:3])}; download the checkpoint again"
        )
    text_config = config.get_text_config()
    top_k = next(
        int(getattr(text_config, name)) for name in ("num_experts_per_tok", "top_k") if hasattr(text_config, name)
    )
    return Manifest(
        folder=checkpoint.folder,
        digest=checkpoint.digest,
        family=config.model_type,
        top_k=top_k,
        modules=modules,
        experts=experts,
    )


def _experts_modules(twin: torch.nn.Module) -> list[ExpertsModule]:
    found = []
    for path, module in twin.named_modules():
        if not is_experts_module(module):
            continue
        match = re.search(r"(?:^|\.)layers\.(\d+)\.", path)
        if match is None:
            raise Unsupported(f"the experts at {path} belong to no numbered layer")
        count = int(module.num_experts)
        stacked = tuple(name for name, parameter in module.named_parameters(recurse=False) if len(parameter) == count)
        found.append(ExpertsModule(path, path.split(".")[0], int(match[1]), stacked, count))
    return found


class _Sources(NamedTuple):
    """The checkpoint tensors that form one stacked parameter."""

    stacked: TensorLocation | None
    per_expert: dict[int, list[TensorLocation | None]]  # by expert, in the order of concatenation
    names: list[str]  # of the patterns, for messages


def _sources(checkpoint: Checkpoint, twin: Any) -> dict[str, _Sources]:
    mapping = get_model_conversion_mapping(twin)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    state = twin.state_dict()
    found: dict[str, _Sources] = defaultdict(lambda: _Sources(None, defaultdict(list), []))
    for name, location in checkpoint.tensors.items():
        target, pattern = rename_source_key(name, renamings, converters, twin.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        if pattern is None:
            found[target] = _Sources(location, {}, [name])
            continue
        converter = by_pattern[pattern]
        expert = _expert_of(name, pattern)
        if expert is None or not _is_plain(converter):
            if ".experts" in target:
                chain = ", ".join(type(operation).__name__ for operation in converter.operations)
                raise Unsupported(f"{name} reaches {target} through {chain}, which cannot be read expert by expert yet")
            continue
        entry = found[target]
        if not entry.names:
            entry.names.extend(converter.source_patterns)
        parts = entry.per_expert.setdefault(expert, [None] * len(converter.source_patterns))
        parts[converter.source_patterns.index(pattern)] = location
    return found


def _is_plain(converter: WeightConverter) -> bool:
    """Whether an expert's bytes are its tensors one behind the other."""
    operations = converter.operations
    if not operations or not isinstance(operations[0], MergeModulelist) or operations[0].dim != 0:
        return False
    rest = operations[1:]
    if len(converter.source_patterns) == 1:
        return not rest
    return len(rest) == 1 and isinstance(rest[0], Concatenate) and rest[0].dim == 1


def _expert_of(name: str, pattern: str) -> int | None:
    match = re.search(re.escape(pattern).replace(r"\*", r"(\d+)"), name)
    return int(match[1]) if match and match.groups() else None


def _expert_parameter(name: str, expert: int, shape: tuple[int, ...], sources: _Sources) -> ExpertParameter:
    """Describe one expert's part; a KeyError names the first tensor that is absent."""
    one = shape[1:]
    if sources.stacked is not None:
        whole = sources.stacked
        if whole.shape != shape:
            raise CheckpointError(f"{sources.names[0]} has shape {whole.shape}, the model needs {shape}")
        nbytes = whole.nbytes // shape[0]
        begin = whole.offset + expert * nbytes
        pieces: tuple[Piece, ...] = (Piece(whole.file, begin, nbytes),)
        dtype, address = whole.dtype, begin % ALIGNMENT
    else:
        if not sources.names:
            raise KeyError(name)
        parts = sources.per_expert.get(expert, [None] * len(sources.names))
        present = []
        for pattern, part in zip(sources.names, parts, strict=True):
            if part is None:
                raise KeyError(pattern.replace("*", str(expert)))
            present.append(part)
        rows = sum(part.shape[0] for part in present)
        if any(part.shape[1:] != one[1:] for part in present) or rows != one[0]:
            raise CheckpointError(
                f"{name} of expert {expert} has shapes {[part.shape for part in present]}, the model needs {one}"
            )
        if len({part.dtype for part in present}) > 1:
            raise CheckpointError(f"{name} of expert {expert} mixes {sorted({part.dtype for part in present})}")
        pieces = tuple(Piece(part.file, part.offset, part.nbytes) for part in present)
        dtype, nbytes = present[0].dtype, sum(part.nbytes for part in present)
        address = expert * nbytes % ALIGNMENT
    if dtype not in DTYPES:
        raise Unsupported(f"{name} of expert {expert} is stored as {dtype}; only F32, F16 and BF16 can be run exactly")
    address -= address % DTYPES[dtype].itemsize  # torch has no tensors at odd addresses
    return ExpertParameter(name=name, dtype=DTYPES[dtype], shape=one, nbytes=nbytes, address=address, pieces=pieces)
