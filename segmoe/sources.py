"""Which checkpoint tensors form each experts parameter, by transformers' own mapping. Their bytes are locating.py.

The mapping renames tensors and names converters by patterns, in which a `*` stands for the expert. Its rules are
applied with the library's own functions, in the library's order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ErnieFuseAndSplitTextVisionExperts,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)

from segmoe.checkpoint import Checkpoint, TensorLocation


@dataclass(slots=True)
class Sources:
    """The checkpoint tensors that form one parameter of an experts module."""

    names: list[str]  # patterns in the converter's order, or the one tensor's name
    tensors: list[dict[int | None, TensorLocation]]  # for each name by expert; under None if stacked over experts
    parameter: str  # full name in the model
    converter: Any = None
    made: tuple[str, ...] = ()  # the parameters that the converter makes, by the first of which the library calls it
    share: int = 0  # which share of the experts is this parameter's, where one list of experts fills several modules

    @property
    def is_plain(self) -> bool:
        """Whether an expert's bytes are its tensors one behind the other."""
        return self.converter is None or _is_plain(self.converter)


def find_sources(checkpoint: Checkpoint, twin: Any, expert_names: set[str]) -> tuple[dict[str, Sources], set[str]]:
    """What forms each experts parameter, and which other parameters are there."""
    mapping = get_model_conversion_mapping(twin)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    state = twin.state_dict()
    found: dict[str, Sources] = {}
    others: set[str] = set()
    for name in sorted(checkpoint.tensors, key=dot_natural_key):  # some renamings depend on the library's order
        location = checkpoint.tensors[name]
        renamed = apply_renamings(name, renamings)
        target, pattern = rename_source_key(renamed, [], converters, twin.base_model_prefix, state)
        if target not in state and name in state:
            target, pattern = name, None
        if pattern is None:
            if target in expert_names:
                found[target] = Sources([name], [{None: location}], target)
            others.add(target)
            continue
        converter = by_pattern[pattern]
        made = tuple(target.replace(converter.target_patterns[0], other) for other in converter.target_patterns)
        others.update(made)
        expert = _expert_of(renamed, pattern)
        known = [found[parameter].tensors for parameter in made if parameter in found]
        tensors: list[dict[int | None, TensorLocation]] = known[0] if known else [{} for _ in converter.source_patterns]
        tensors[converter.source_patterns.index(pattern)][expert] = location
        for share, parameter in enumerate(made):
            if parameter in expert_names and parameter not in found:
                names = list(converter.source_patterns)
                dealt = share if _is_dealt(converter) else 0
                found[parameter] = Sources(names, tensors, parameter, converter, made, dealt)
    for name, source in getattr(twin, "all_tied_weights_keys", {}).items():
        if name in expert_names and name not in found and source in found:
            found[name] = found[source]
    return found, others - expert_names


def _is_plain(converter: Any) -> bool:
    operations = converter.operations
    if _is_dealt(converter):
        return True
    if not isinstance(operations[0], MergeModulelist) or operations[0].dim != 0 or len(converter.target_patterns) > 1:
        return False
    rest = operations[1:]
    if len(converter.source_patterns) == 1:
        return not rest
    return len(rest) == 1 and isinstance(rest[0], Concatenate) and rest[0].dim == 1


def _is_dealt(converter: Any) -> bool:
    """Whether one list of experts is dealt out to several modules in equal shares, and merged there."""
    (first, *rest) = converter.operations
    is_dealing = isinstance(first, ErnieFuseAndSplitTextVisionExperts)
    return is_dealing and not rest and (first.stack_dim, first.concat_dim) == (0, 1)


def _expert_of(name: str, pattern: str) -> int | None:
    match = re.search(pattern.replace("*.", r"(\d+)\."), name) if "*." in pattern else None
    return int(match[1]) if match else None
