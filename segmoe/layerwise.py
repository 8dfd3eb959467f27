"""Is each expert of each layer the stock one, bit for bit, with one layer in memory? Whole models are parity.py.

The reference is the family's own experts module with eager experts, filled by transformers' own loader with one layer's
tensors as safetensors reads them: nothing of segmoe's manifest, reader or cache has touched them. Compared are the
bytes of each expert, and the module's outputs on seeded random hidden states and picks that reach every expert, for
many rows at once and for single rows. Attention and all other parts are transformers' own and are not run here.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig, get_state_dict_dtype, load_state_dict

from segmoe.building import quiet_transformers, read_config, without_experts
from segmoe.checkpoint import INDEX, SINGLE, open_checkpoint
from segmoe.errors import CheckpointError
from segmoe.events import ExpertKey
from segmoe.experts import IMPLEMENTATION
from segmoe.locating import build_manifest
from segmoe.modules import is_experts_module, model_class
from segmoe.parity import SEED
from segmoe.policies import DEFAULT_POLICY
from segmoe.runtime import Runtime
from segmoe.verdict import Check, LayersVerdict, same_bits

PREFILL_ROWS = 256


def verify_layers(
    path: str | Path,
    *,
    experts: int | None = None,
    budget: str | int | None = None,
    policy: str = DEFAULT_POLICY,
    threads: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> LayersVerdict:
    """Compare every experts module of a checkpoint with the stock one; a quarter of a layer in the cache if not told.

    `report` is told each layer's result and how long the rest may take.
    """
    model = segmented_experts(path, experts=experts, budget=budget, policy=policy, threads=threads)
    runtime: Runtime = model.segmoe
    stock = StockExperts(runtime.manifest.folder)
    checks: list[Check] = []
    equal = total = 0
    began = time.perf_counter()
    paths = [place.path for place in runtime.manifest.modules]
    if set(paths) != set(stock.paths):
        raise CheckpointError(f"stock has experts at {sorted(set(stock.paths) ^ set(paths))[:3]}, the manifest differs")
    with closing(runtime), torch.no_grad():
        for ordinal, place in enumerate(runtime.manifest.modules):
            with stock.loaded(place.path) as reference:
                outcome = _compare(reference, model.get_submodule(place.path), runtime, ordinal)
            is_equal = not outcome.differing and not outcome.problems
            checks.append(Check(f"{place.component} layer {place.layer}", is_equal, outcome.detail))
            total += outcome.experts
            equal += 0 if outcome.problems else outcome.experts - len(outcome.differing)
            spent = time.perf_counter() - began
            left = spent / (ordinal + 1) * (len(paths) - ordinal - 1)
            report(f"{ordinal + 1} of {len(paths)}  {checks[-1]}  ({spent:.0f} s, about {left:.0f} s left)")
    return LayersVerdict(
        checkpoint_digest=runtime.manifest.digest, checks=tuple(checks), experts_equal=equal, experts=total
    )


def segmented_experts(
    path: str | Path, *, experts: int | None, budget: str | int | None, policy: str, threads: int | None = None
) -> Any:
    """The model of a checkpoint with its seams in place and no other weights."""
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint.folder)
    manifest = build_manifest(checkpoint, config)
    manifest.require_complete()
    if experts is None and budget is None:
        experts = max(1, max(place.num_experts for place in manifest.modules) // 4)
    runtime = Runtime(manifest, experts=experts, budget=budget, policy=policy, threads=threads)
    cls = model_class(config)
    with without_experts(cls, config, manifest), torch.device("meta"):
        model = cls._from_config(config, experts_implementation=IMPLEMENTATION)
    runtime.attach(model)
    return model


class StockExperts:
    """The stock experts modules of a checkpoint, of which one at a time is in memory."""

    def __init__(self, folder: Path) -> None:
        config = read_config(folder)
        self._files = _files(folder)
        dtype = config.dtype
        if dtype is None:  # then the library goes by the first shard
            dtype = get_state_dict_dtype(load_state_dict(str(min(self._files.values())), map_location="meta"))
        with torch.device("meta"):
            self._model = model_class(config)._from_config(config, dtype=dtype, experts_implementation="eager")
        self._mapping = get_model_conversion_mapping(self._model)
        self.paths: dict[str, None] = dict.fromkeys(
            name for name, module in self._model.named_modules() if is_experts_module(module)
        )
        self._tensors = self._by_module()

    @contextmanager
    def loaded(self, path: str) -> Iterator[Any]:
        """While this lasts, the module at `path` has its weights."""
        module = self._model.get_submodule(path)
        tied = getattr(self._model, "all_tied_weights_keys", {})
        names = [f"{path}.{name}" for name, _ in module.named_parameters()]
        origins = {name: tied.get(name, name) for name in names}
        homes = sorted({self._owner(origin) or path for origin in origins.values()})
        parts = [part for home in (path, *homes) for part in self._model.get_submodule(home).modules()]
        hollow = {part: dict(part._parameters) for part in parts}
        files = {name: file for home in homes for name, file in self._tensors[home]}
        settings = LoadStateDictConfig(
            dtype=self._model.dtype,
            dtype_plan=self._model._get_dtype_plan(self._model.dtype),
            weight_mapping=self._mapping,
        )
        with ExitStack() as stack:
            shards = {file: stack.enter_context(safe_open(file, framework="pt")) for file in set(files.values())}
            slices = {name: shards[file].get_slice(name) for name, file in files.items()}
            with quiet_transformers():
                info, _ = convert_and_load_state_dict_in_model(self._model, slices, settings)
            del slices
            for name, origin in origins.items():
                parent, _, leaf = name.rpartition(".")
                self._model.get_submodule(parent)._parameters[leaf] = self._model.get_parameter(origin)
            try:
                if info.conversion_errors or any(parameter.is_meta for parameter in module.parameters()):
                    why = info.conversion_errors or "tensors are missing"
                    raise CheckpointError(f"transformers cannot load {path} alone: {why}")
                yield module
            finally:
                for part, parameters in hollow.items():
                    part._parameters.update(parameters)

    def _by_module(self) -> dict[str, list[tuple[str, Path]]]:
        """Each module's checkpoint tensors and their files, by the library's own renaming."""
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        state, prefix = self._model.state_dict(), self._model.base_model_prefix
        found: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        for name, file in self._files.items():
            target, _ = rename_source_key(name, renamings, converters, prefix, state)
            if target not in state and name in state:  # saved as the model has it: what the loader does then, too
                target, _ = rename_source_key(name, [], [], prefix, state)
            owner = self._owner(target)
            if owner is not None:
                found[owner].append((name, file))
        return found

    def _owner(self, parameter: str) -> str | None:
        """The experts module that a parameter is part of."""
        while parameter := parameter.rpartition(".")[0]:
            if parameter in self.paths:
                return parameter
        return None


def _files(folder: Path) -> dict[str, Path]:
    """The file of each tensor."""
    if (folder / INDEX).is_file():
        weight_map = json.loads((folder / INDEX).read_bytes())["weight_map"]
        return {name: folder / file for name, file in weight_map.items()}
    with safe_open(folder / SINGLE, framework="pt") as shard:
        return dict.fromkeys(shard.keys(), folder / SINGLE)


class _Outcome(NamedTuple):
    experts: int
    differing: list[int]  # experts whose bytes differ
    problems: list[str]  # with outputs
    detail: str


def _compare(stock: Any, segmented: Any, runtime: Runtime, ordinal: int) -> _Outcome:
    """Compare one layer's bytes and outputs."""
    place = runtime.manifest.modules[ordinal]
    stacked = dict(stock.named_parameters(recurse=False))
    count, top_k = len(stacked[place.parameters[0]]), place.top_k
    for name, child in stock.named_children():  # such as a norm behind the experts, which is never segmented
        segmented.add_module(name, child)
    differing = []
    for expert in range(count):
        found = runtime.cache.get(ExpertKey(place.component, place.layer, expert))
        if not all(same_bits(stacked[name][expert], found[name].to_dense()) for name in place.parameters):
            differing.append(expert)
    generator = torch.Generator().manual_seed(SEED + ordinal)
    covering = -(-count // top_k)
    rows = max(PREFILL_ROWS, 2 * covering)
    order = torch.randperm(count, generator=generator).repeat(2)
    ids = torch.rand(rows, count, generator=generator).topk(top_k).indices
    for row in range(covering):  # these alone reach every expert
        ids[row] = order[row * top_k : (row + 1) * top_k]
    dtype = next(iter(stacked.values())).dtype
    hidden = torch.randn(rows, _width(stock), generator=generator).to(dtype)
    weights = torch.rand(rows, top_k, generator=generator).softmax(-1).to(dtype)
    batches = [slice(0, rows), *(slice(row, row + 1) for row in range(covering))]
    problems = []
    for batch in batches:
        wanted = stock(hidden[batch], ids[batch], weights[batch])
        found = segmented(hidden[batch], ids[batch], weights[batch])
        if not same_bits(wanted, found):
            largest = (wanted.float() - found.float()).abs().max().item()
            problems.append(f"outputs of {len(wanted)} rows by {largest:.3g}")
    tried = f"{count:,} experts, {rows} rows at once, {covering} alone"
    parts = [f"bytes of experts {', '.join(map(str, differing[:8]))}"] if differing else []
    return _Outcome(count, differing, problems, "; ".join([tried, *parts, *problems[:2]]))


def _width(module: Any) -> int:
    """Hidden size that an experts module takes."""
    own = getattr(module, "hidden_dim", None) or getattr(module, "hidden_size", None)
    return int(own or module.config.hidden_size)
