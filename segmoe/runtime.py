"""Load a checkpoint as the stock transformers model with its experts on disk. The seam itself is experts.py."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from segmoe import passes
from segmoe.cache import ExpertCache
from segmoe.checkpoint import open_checkpoint
from segmoe.errors import CheckpointError, ConfigError, Unsupported
from segmoe.events import CAPTURES, Capture, Event, EventSink, GuardedSink, StepDone
from segmoe.experts import IMPLEMENTATION, Seam
from segmoe.manifest import Manifest, build_manifest, is_experts_module, model_class
from segmoe.policies import make_policy
from segmoe.units import parse_bytes

_loading = threading.Lock()  # classes are changed while a model is built


def load(
    path: str | Path,
    *,
    experts: int | None = None,
    budget: str | int | None = None,
    policy: str = "lru",
    sink: EventSink | None = None,
    capture: Capture = "routing",
) -> Any:
    """Return the stock transformers model of a checkpoint, with at most `experts` (or `budget` bytes) in memory.

    The budget covers experts of all layers together and not the other weights, which are always in memory. Without
    one, all experts may stay in memory once they were used. The model's `segmoe` attribute is its `Runtime`.
    `capture` says how much a `sink` is told: "off" (residency and steps only), "routing" or "contribution".
    Raises CheckpointError for a checkpoint that is incomplete or damaged, ConfigError for bad settings.
    """
    if capture not in CAPTURES:
        raise ConfigError(f"there is no capture level {capture!r}; choose one of {', '.join(CAPTURES)}")
    if experts is not None and budget is not None:
        raise ConfigError("give a budget in experts or in bytes, not both")
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint.folder)
    manifest = build_manifest(checkpoint, config)
    runtime = Runtime(
        manifest,
        policy=policy,
        capacity_experts=experts,
        capacity_bytes=None if budget is None else parse_bytes(budget),
        sink=sink,
        capture=capture,
    )
    model = _build(manifest, config)
    runtime.attach(model)
    return model


def read_config(folder: Path) -> Any:
    """The checkpoint's config, or a CheckpointError if transformers cannot read it."""
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{folder}/config.json cannot be used: {first_line}") from None


class Runtime:
    """What stands behind a segmented model: its manifest, its cache and its sink."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        policy: str,
        capacity_experts: int | None,
        capacity_bytes: int | None,
        sink: EventSink | None,
        capture: Capture,
    ) -> None:
        self.manifest = manifest
        self.policy = policy
        self.capture = capture
        self.cache = ExpertCache(
            manifest.experts,
            make_policy(policy),
            capacity_experts=capacity_experts,
            capacity_bytes=capacity_bytes,
            emit=self.emit,
        )
        self._sink = None if sink is None else GuardedSink(sink)
        self._pass: passes.Pass | None = None
        self._next_step = 0

    @property
    def sink_failures_total(self) -> int:
        """How often the sink raised."""
        return 0 if self._sink is None else self._sink.failures_total

    @property
    def is_capturing(self) -> bool:
        """Whether routing is to be told to anybody."""
        return self._sink is not None and self.capture != "off"

    def emit(self, event: Event) -> None:
        """Tell the sink, if there is one."""
        if self._sink is not None:
            self._sink.emit(event)

    def close(self) -> None:
        """Give back the memory of all experts and close the shards."""
        self.cache.close()

    def attach(self, model: Any) -> None:
        """Put a seam into each experts module and listen to the passes of each component."""
        components: dict[str, Any] = {}
        for place in self.manifest.modules:
            seam = Seam(self, place, model.get_submodule(place.path))
            head, _, _ = place.path.partition(f"layers.{place.layer}.")
            layer = model.get_submodule(f"{head}layers.{place.layer}")
            layer.register_forward_hook(lambda module, args, out, seam=seam: seam.layer_done(_first(out)))
            components[place.component] = model.get_submodule(head.rstrip("."))
        for component, stack in components.items():
            root = model if component == model.base_model_prefix else model.get_submodule(component)
            for module in {id(root): root, id(stack): stack}.values():
                self._listen(component, module, is_stack=module is stack)
        model.segmoe = self
        model.save_pretrained = _refuse_saving

    def tokens_of(self, component: str, rows: int) -> passes.Tokens:
        """Which token each row of the pass under way is."""
        current = self._pass
        if current is not None and current.component == component and len(current.tokens.position) == rows:
            return current.tokens
        nothing = np.full(rows, -1, np.int32)
        return passes.Tokens("prefill", nothing, nothing)

    def _listen(self, component: str, module: Any, *, is_stack: bool) -> None:
        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._pass is None or self._pass.component != component:
                self.cache.step, self._next_step = self._next_step, self._next_step + 1
                self._pass = passes.begin(component, self.cache.counters)
            else:
                self._pass.depth += 1
            if is_stack and self._sink is not None:
                self._pass.tokens = passes.read_tokens(passes.arguments(module, args, kwargs))

        def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            current = self._pass
            if current is None:
                return
            if output is None:  # the forward raised: nothing was predicted
                self._pass = None
                return
            if self.is_capturing:
                call = passes.arguments(module, args, kwargs)
                passes.read_predictions(current, call.get("input_ids"), getattr(output, "logits", None))
            current.depth -= 1
            if current.depth == 0:
                self._pass = None
                self._step_done(current)

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, with_kwargs=True, always_call=True)

    def _step_done(self, current: passes.Pass) -> None:
        if self._sink is None:
            return
        spent = self.cache.counters.since(current.counters)
        phase, sequence, position = current.tokens
        real = position >= 0
        unknown = np.full(len(position), np.nan, np.float32)
        self.emit(
            StepDone(
                step=self.cache.step,
                component=current.component,
                phase=phase,
                tokens=int(real.sum()),
                sequences=len(np.unique(sequence[real])),
                sequence=sequence,
                position=position,
                nll=unknown if current.nll is None else current.nll,
                entropy=unknown if current.entropy is None else current.entropy,
                wall_ns=time.perf_counter_ns() - current.began_ns,
                hits=spent.hits,
                misses=spent.misses,
                loads=spent.loads,
                evictions=spent.evictions,
                bytes_read=spent.bytes_read,
            )
        )


def _build(manifest: Manifest, config: Any) -> Any:
    """Let transformers load everything but the experts, and make sure that it found everything else."""
    cls = model_class(config)
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    with _loading:
        try:
            transformers_logging.set_verbosity_error()  # it would list every expert tensor as unexpected
            transformers_logging.disable_progress_bar()
            with _stripped(cls, config, manifest):
                model, info = cls.from_pretrained(
                    manifest.folder,
                    dtype="auto",
                    experts_implementation=IMPLEMENTATION,
                    local_files_only=True,
                    output_loading_info=True,
                )
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bar:
                transformers_logging.enable_progress_bar()
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
def _stripped(cls: Any, config: Any, manifest: Manifest) -> Iterator[None]:
    """While this lasts, experts modules are built without their stacked parameters, so that nobody reads them."""
    with torch.device("meta"):
        twin = cls._from_config(config)
    names = {module.path: module.parameters for module in manifest.modules}
    classes = {type(module): names[path] for path, module in twin.named_modules() if is_experts_module(module)}
    originals = {kind: kind.__init__ for kind in classes}

    def strip(kind: Any) -> Any:
        original = originals[kind]

        @wraps(original)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes the place of one
            original(self, *args, **kwargs)
            for name in classes[kind]:
                del self._parameters[name]
            self._is_hf_initialized = True

        return __init__

    try:
        for kind in classes:
            kind.__init__ = strip(kind)
        yield
    finally:
        for kind, original in originals.items():
            kind.__init__ = original


def _first(output: Any) -> torch.Tensor:
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _refuse_saving(*args: Any, **kwargs: Any) -> None:
    raise Unsupported("a segmented model holds no experts to save; copy the checkpoint's folder instead")
