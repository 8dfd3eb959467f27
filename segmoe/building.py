"""The stock model of a checkpoint, built and loaded by transformers but for its experts. The seam is experts.py."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from segmoe.errors import CheckpointError, Unsupported
from segmoe.experts import IMPLEMENTATION
from segmoe.manifest import Manifest
from segmoe.modules import is_experts_module, model_class

_loading = threading.Lock()  # classes are changed while a model is built


def read_config(folder: Path) -> Any:
    """The checkpoint's config, or a CheckpointError if transformers cannot read it."""
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{folder}/config.json cannot be used: {first_line}") from None


def build_model(manifest: Manifest, config: Any) -> Any:
    """Let transformers load everything but the experts, and make sure that it found everything else."""
    cls = model_class(config)
    with quiet_transformers(), without_experts(cls, config, manifest):
        model, info = cls.from_pretrained(
            manifest.folder,
            dtype="auto",
            experts_implementation=IMPLEMENTATION,
            local_files_only=True,
            output_loading_info=True,
        )
    lost = sorted(info["missing_keys"])
    if lost or info["mismatched_keys"]:
        names = ", ".join([*lost, *sorted(str(key) for key in info["mismatched_keys"])][:3])
        raise CheckpointError(
            f"{manifest.folder} is incomplete: {len(lost)} tensors beside the experts are missing or of another shape "
            f"({names}); download the checkpoint again"
        )
    stored = {part.dtype for segment in manifest.experts.values() for part in segment.parameters}
    if stored != {model.dtype}:
        raise Unsupported(f"{manifest.folder} stores experts as {stored}, but its config says {model.dtype}")
    return model.eval()  # parameters keep requires_grad: without it torch's matmul may take another kernel


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """While this lasts, transformers shows no bar and does not list every expert tensor as unexpected."""
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    try:
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def without_experts(cls: Any, config: Any, manifest: Manifest) -> Iterator[None]:
    """While this lasts, experts modules are built without their stacked parameters, so that nobody reads them."""
    with _loading, _stripped(cls, config, manifest):
        yield


@contextlib.contextmanager
def _stripped(cls: Any, config: Any, manifest: Manifest) -> Iterator[None]:
    with torch.device("meta"):
        twin = cls._from_config(config)
    names = {module.path: module.parameters for module in manifest.modules}
    classes = {type(module): names[path] for path, module in twin.named_modules() if is_experts_module(module)}
    originals = {kind: kind.__init__ for kind in classes}
    stacked_names = [f"{module.path}.{name}" for module in manifest.modules for name in module.parameters]
    tying = {kind: kind._tied_weights_keys for kind in {type(module) for module in twin.modules()} if _is_tying(kind)}

    def strip(kind: Any) -> Any:
        original = originals[kind]

        @wraps(original)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes the place of one
            original(self, *args, **kwargs)
            for name in classes[kind]:
                stacked = self._parameters.pop(name)
                setattr(self, name, torch.empty_like(stacked, device="meta"))  # some families look at it once more
            self._is_hf_initialized = True

        return __init__

    try:
        for kind in classes:
            kind.__init__ = strip(kind)
        for kind, ties in tying.items():  # experts that are tied are read from where they are tied to
            kept = {to: of for to, of in ties.items() if not any(re.search(to, name) for name in stacked_names)}
            kind._tied_weights_keys = kept
        yield
    finally:
        for kind, ties in tying.items():
            kind._tied_weights_keys = ties
        for kind, original in originals.items():
            kind.__init__ = original


def _is_tying(kind: Any) -> bool:
    return isinstance(vars(kind).get("_tied_weights_keys"), dict)
