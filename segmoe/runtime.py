"""Load a checkpoint as the stock transformers model with its experts on disk. The seam itself is experts.py."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from segmoe import passes
from segmoe.attaching import Selection, check_selection, is_selected
from segmoe.building import build_model, read_config
from segmoe.cache import ExpertCache
from segmoe.checkpoint import open_checkpoint
from segmoe.dense import leave_rows_on_disk, take_over
from segmoe.direct import THREADS as DIRECT_THREADS
from segmoe.direct import is_due
from segmoe.errors import ConfigError
from segmoe.events import CAPTURES, Capture, Event, EventSink, ExpertKey, GuardedSink
from segmoe.experts import Seam
from segmoe.guards import OneThread, leave_uncompiled, refuse_copying, stay_as_loaded, uncompiled
from segmoe.guessing import NEAR_LAYERS, Router, find_routers
from segmoe.locating import build_manifest
from segmoe.manifest import Manifest
from segmoe.memory import memory_bytes, most_early
from segmoe.packing import Pace
from segmoe.policies import DEFAULT_POLICY, make_policy
from segmoe.slots import Slots
from segmoe.units import format_bytes, parse_bytes

THREADS = 2
WORTH_A_THREAD_BYTES = 1 << 20
"""Handing a smaller expert to a thread costs more than reading it."""


def load(
    path: str | Path,
    *,
    experts: int | None = None,
    budget: str | int | None = None,
    policy: str = DEFAULT_POLICY,
    trust: Mapping[ExpertKey, float] | None = None,
    sink: EventSink | None = None,
    capture: Capture = "routing",
    select: Selection | None = None,
    device: str | torch.device = "cpu",
    threads: int | None = None,
    mapped: bool = True,
) -> Any:
    """Return the stock transformers model of a checkpoint, with at most `experts` (or `budget` bytes) in memory.

    The budget covers experts of all layers together and not the other weights, which are always in memory; beside
    both, threads may hold 4% of them, or one expert, of what they read early. Without a budget, all experts may stay
    in memory once they were used. The model's `segmoe` attribute is its `Runtime`.
    `capture` says how much a `sink` is told: "off" (residency and steps only), "counts", "routing" or "contribution";
    `select` of which layers, by component: `{"thinker": range(24)}`.
    `device` holds the model and its experts. So many `threads` read experts while others are computed; 0 reads in the
    pass itself. Experts on the CPU are `mapped` from the files where they lie, if they are large and the bits stay the
    same; say False where the files may be truncated or rewritten meanwhile. Where memory can hold the budget and little
    more, what the kernel has not cached is read past its cache. None of these changes a bit of what the model
    computes, or which experts are read and evicted.
    Raises CheckpointError for a checkpoint that is incomplete or damaged, ConfigError for bad settings.
    """
    if capture not in CAPTURES:
        raise ConfigError(f"there is no capture level {capture!r}; choose one of {', '.join(CAPTURES)}")
    checkpoint = open_checkpoint(path)
    config = read_config(checkpoint.folder)
    manifest = build_manifest(checkpoint, config)
    manifest.require_complete()
    runtime = Runtime(
        manifest,
        experts=experts,
        budget=budget,
        policy=policy,
        trust=trust,
        sink=sink,
        capture=capture,
        select=select,
        device=device,
        threads=threads,
        mapped=mapped,
    )
    model = build_model(manifest, config).to(runtime.device)
    if runtime.device.type == "cpu":
        leave_rows_on_disk(model)  # before others take the place of parameters, which would show where they lie
    take_over(model, runtime.pace)
    runtime.attach(model)
    return model


class Runtime:
    """What stands behind a segmented model: its manifest, its cache and its sink."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        experts: int | None,
        budget: str | int | None,
        policy: str,
        trust: Mapping[ExpertKey, float] | None = None,
        sink: EventSink | None = None,
        capture: Capture = "off",
        select: Selection | None = None,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        mapped: bool = True,
    ) -> None:
        if experts is not None and budget is not None:
            raise ConfigError("give a budget in experts or in bytes, not both")
        self.device = usable_device(device)
        if experts is None and budget is None and self.device.type == "cpu":
            _require_room(manifest)
        largest = max(segment.nbytes for segment in manifest.experts.values())
        capacity_bytes = None if budget is None else parse_bytes(budget)
        held_bytes = capacity_bytes if experts is None else experts * largest
        if held_bytes is None:
            held_bytes = len(manifest.experts) * largest
        early = most_early(held_bytes, manifest.other_bytes, largest)
        is_threaded = largest >= WORTH_A_THREAD_BYTES if threads is None else threads > 0
        direct = is_due(manifest, held_bytes + (early * largest if is_threaded else 0))
        if threads is None:
            threads = (DIRECT_THREADS if direct else THREADS) if is_threaded else 0
        self.manifest = manifest
        self.policy = policy
        self.capture = capture
        check_selection(manifest.modules, select)
        self._select = select
        self.pace = Pace()
        self.cache = ExpertCache(
            manifest.experts,
            make_policy(policy, trust),
            capacity_experts=experts,
            capacity_bytes=capacity_bytes,
            slots=Slots(threads=threads, device=self.device, mapped=mapped, direct=direct, pace=self.pace),
            early=early,
            emit=self.emit,
        )
        self._sink = None if sink is None else GuardedSink(sink)
        self._pass: passes.Pass | None = None
        self._inside: list[Any] = []  # its modules that were entered and not left, outermost first
        self._next_step = 0
        self._is_paused = False

    @property
    def sink_failures_total(self) -> int:
        """How often the sink raised."""
        return 0 if self._sink is None else self._sink.failures_total

    @property
    def is_capturing(self) -> bool:
        """Whether routing is to be told to anybody."""
        return self._sink is not None and self.capture != "off" and not self._is_paused

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While this lasts, the sink is told nothing; call it between passes. Step numbers go on."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def emit(self, event: Event) -> None:
        """Tell the sink, if there is one."""
        if self._sink is not None and not self._is_paused:
            self._sink.emit(event)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copying()

    def close(self) -> None:
        """Give back the memory of all experts and close the shards."""
        self.cache.close()

    def attach(self, model: Any) -> None:
        """Put a seam into each experts module and listen to the passes of each component."""
        stacks: dict[str, dict[int, Any]] = {}
        experts = [model.get_submodule(place.path) for place in self.manifest.modules]
        watched = {id(module): module for module in (model, *experts)}
        routers = find_routers(model, self.manifest.modules)
        seams: defaultdict[str, list[Seam]] = defaultdict(list)  # of each component
        for place, module, weight in zip(self.manifest.modules, experts, routers, strict=True):
            seam = Seam(self, place, module)
            seam.is_told = is_selected(place, self._select)
            before = seams[place.component]
            if before:
                before[-1].following = seam
            if weight is not None and self.cache.may_prefetch:
                seam.far = Router(weight, place.top_k)
                if len(before) < NEAR_LAYERS:
                    seam.near = Router(weight, place.top_k)
                    model.get_submodule(place.block).register_forward_pre_hook(_before_layer(seam), with_kwargs=True)
            before.append(seam)
            if self._sink is not None and self.capture == "contribution" and seam.is_told:
                model.get_submodule(place.block).register_forward_hook(_after_layer(seam))
            stack = model.get_submodule(place.stack)
            stacks.setdefault(place.root, {})[id(stack)] = stack
        for component, found in stacks.items():
            root = model if component == model.base_model_prefix else model.get_submodule(component)
            for module in {id(root): root, **found}.values():
                self._listen(component, module, is_stack=id(module) in found)
                watched[id(module)] = module
        self._one_thread = OneThread(experts)
        leave_uncompiled(watched.values())
        stay_as_loaded(model, experts)
        model.segmoe = self

    def tokens_of(self, component: str, rows: int) -> passes.Tokens:
        """Which token each row of the pass under way is."""
        return passes.tokens_of(self._pass, component, rows)

    def _listen(self, component: str, module: Any, *, is_stack: bool) -> None:
        is_predicting = hasattr(module, "can_generate") and module.can_generate()  # other heads' logits are of labels

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._one_thread.enter()
            if self._pass is None or self._pass.component != component or module in self._inside:
                # who is inside already was left by Ctrl-C, of which no hook hears
                self.cache.step, self._next_step = self._next_step, self._next_step + 1
                self._pass = passes.begin(component, self.cache.counters)
                self._inside = [module]
            else:
                self._inside.append(module)
            if is_stack:
                self._pass.tokens = passes.read_tokens(passes.arguments(module, args, kwargs))
                self.cache.begin(self.cache.step, int((self._pass.tokens.position >= 0).sum()))

        def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            current = self._pass
            if current is None or not self._one_thread.is_mine:
                return
            if output is None:  # the forward raised: nothing was predicted
                self._end_pass()
                return
            if self.is_capturing and is_predicting and current.tokens.phase == "prefill":  # a single token has no next
                call = passes.arguments(module, args, kwargs)
                passes.read_predictions(current, call.get("input_ids"), getattr(output, "logits", None))
            self._inside.pop()
            if not self._inside:
                try:
                    self._step_done(current)
                finally:
                    self._end_pass()

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, with_kwargs=True, always_call=True)

    def _end_pass(self) -> None:
        self._pass = None
        self._inside = []
        self._one_thread.leave()

    def _step_done(self, current: passes.Pass) -> None:
        if self._sink is not None and not self._is_paused:
            self.emit(passes.step_done(current, self.cache.step, self.cache.counters))


def _after_layer(seam: Seam) -> Callable[..., None]:
    def done(module: Any, args: Any, output: Any) -> None:
        seam.layer_done(_first(output))

    return uncompiled(done)


def _before_layer(seam: Seam) -> Callable[..., None]:
    def begins(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        h = args[0] if args else kwargs.get("hidden_states")
        if isinstance(h, torch.Tensor):
            seam.before_layer(h)

    return uncompiled(begins)


def _first(output: Any) -> torch.Tensor:
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _require_room(manifest: Manifest) -> None:
    needed, there = manifest.checkpoint.nbytes, memory_bytes()
    if needed > there:
        raise ConfigError(
            f"all of {manifest.folder} takes {format_bytes(needed)}, and there are {format_bytes(there)} of memory; "
            "give a budget, `segmoe inspect` says what each takes"
        )


def usable_device(device: str | torch.device) -> torch.device:
    """The device, or a ConfigError where experts cannot be: they go to the CPU or to a CUDA device that is there."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"there is no device {device!r}; choose cpu, cuda or cuda:1") from None
    if found.type not in ("cpu", "cuda"):
        raise ConfigError(f"experts cannot be kept on {found}; choose cpu, cuda or cuda:1")
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            raise ConfigError(f"{found} was asked for, and torch sees {count} CUDA devices; choose one of them, or cpu")
        found = torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
    return found
