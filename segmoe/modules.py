"""Which modules of a model are its experts, and where in it they stand. Their bytes are found by locating.py."""

from __future__ import annotations

import re
from typing import Any

import torch
import transformers

from segmoe.errors import Unsupported
from segmoe.manifest import ExpertsModule


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
