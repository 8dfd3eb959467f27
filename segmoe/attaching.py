"""Listen to a stock model that is loaded already, with any experts implementation. Segmenting one is runtime.py.

    attached = segmoe.attach(model, sink, capture="contribution")
    model.generate(**inputs)
    attached.detach()

Only hooks are added, and `detach` removes them. All weights are in memory, so there are no residency events. What a
pick contributed is read from the last step of the implementation, what each expert adds (eager) or a sum over picks
(batched_mm, grouped_mm); nothing is computed twice. Other implementations, and compiled models, tell routing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from segmoe import passes
from segmoe.contributions import Added, is_small_enough, of_experts, of_picks, ordinary, watched
from segmoe.counters import Counters
from segmoe.errors import ConfigError, Unsupported
from segmoe.events import CAPTURES, Capture, Contribution, EventSink, GuardedSink
from segmoe.guards import uncompiled
from segmoe.manifest import ExpertsModule
from segmoe.modules import experts_modules
from segmoe.telling import Picks, tell_later

Selection = Mapping[str, Collection[int]]
"""Component -> layers of which routing is told."""


def attach(model: Any, sink: EventSink, *, capture: Capture = "routing", select: Selection | None = None) -> Attached:
    """Tell the sink of every pass of the model from now on; `select` names the layers to tell of, by component.

    Raises ConfigError for a capture level or a selection that does not exist, Unsupported for a model without routed
    experts, or one that segmoe loaded.
    """
    return Attached(model, sink, capture, select)


class Attached:
    """What listens to a stock model. As a context manager it detaches at the end."""

    def __init__(self, model: Any, sink: EventSink, capture: Capture, select: Selection | None) -> None:
        if capture not in CAPTURES:
            raise ConfigError(f"there is no capture level {capture!r}; choose one of {', '.join(CAPTURES)}")
        if hasattr(model, "segmoe"):
            raise Unsupported("segmoe loaded this model; give the sink to segmoe.load instead")
        modules = experts_modules(model)
        if not modules:
            raise Unsupported(f"{type(model).__name__} has no routed experts to observe")
        self.capture = capture
        self._sink = GuardedSink(sink)
        self._pass: passes.Pass | None = None
        self._inside: list[Any] = []
        self._step = -1
        self._is_paused = False
        self._is_told = True  # the pass under way
        self._handles: list[Any] = []
        check_selection(modules, select)
        stacks: dict[str, dict[int, Any]] = {}
        for place in modules:
            if capture != "off" and is_selected(place, select):
                self._watch(place, model.get_submodule(place.path), model.get_submodule(place.block))
            stack = model.get_submodule(place.stack)
            stacks.setdefault(place.root, {})[id(stack)] = stack
        for component, found in stacks.items():
            root = model if component == model.base_model_prefix else model.get_submodule(component)
            for module in {id(root): root, **found}.values():
                self._listen(component, module, is_stack=id(module) in found)

    @property
    def sink_failures_total(self) -> int:
        """How often the sink raised."""
        return self._sink.failures_total

    def detach(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, *error: Any) -> None:
        self.detach()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While this lasts, passes that begin are not told of; their step numbers are missing afterwards."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def _watch(self, place: ExpertsModule, module: Any, block: Any) -> None:
        """Hook an experts module, and its layer, whose output the contributions are measured by."""
        under_way: list[_Picks] = []
        done: list[_Picks] = []

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._pass is None or not self._is_told:
                return None
            hidden, ids, weights = (*args, *kwargs.values())[:3]
            picks = _Picks(ids, weights)
            under_way.append(picks)
            if self.capture != "contribution" or torch.compiler.is_compiling() or not is_small_enough(hidden, ids):
                return None
            hidden = picks.listen(hidden, module.config._experts_implementation)
            return ((hidden, *args[1:]), kwargs) if args else (args, kwargs | {next(iter(kwargs)): hidden})

        def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not under_way:
                return None
            picks = under_way.pop()
            picks.close()
            if output is None:
                return None  # the forward raised
            if picks.is_listening:
                done[:] = [picks]
                return ordinary(output)
            self._tell(place, picks, None)
            return None

        def layer_done(module: Any, args: Any, output: Any) -> None:
            if done:
                picks = done.pop()
                h = output[0] if isinstance(output, tuple) else output
                self._tell(place, picks, picks.contribution(h.detach().reshape(-1, h.shape[-1])))

        self._handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True, always_call=True),
            block.register_forward_hook(layer_done),
        ]

    def _tell(self, place: ExpertsModule, picks: _Picks, contributed: Contribution | torch.Tensor | None) -> None:
        current = self._pass
        if current is not None:
            tokens = passes.tokens_of(current, place.root, len(picks.ids))
            told = Picks(self._step, place, tokens, picks.ids, picks.weights, contributed)
            tell_later(current, told, self._sink.emit, self.capture)

    def _listen(self, component: str, module: Any, *, is_stack: bool) -> None:
        is_predicting = hasattr(module, "can_generate") and module.can_generate()

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._pass is None or self._pass.component != component or module in self._inside:
                self._step += 1
                self._pass, self._is_told = passes.begin(component, Counters()), not self._is_paused
                self._inside = [module]
            else:
                self._inside.append(module)
            if is_stack and self._is_told:
                self._pass.tokens = passes.read_tokens(passes.arguments(module, args, kwargs))

        def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            current = self._pass
            if current is None or output is None:
                self._pass, self._inside = None, []
                return
            if is_predicting and self._is_told and self.capture != "off" and current.tokens.phase == "prefill":
                call = passes.arguments(module, args, kwargs)
                passes.read_predictions(current, call.get("input_ids"), getattr(output, "logits", None))
            self._inside.pop()
            if not self._inside:
                self._pass = None
                if not self._is_told:
                    return
                self._sink.emit(passes.step_done(current, self._step, Counters()))

        self._handles += [
            module.register_forward_pre_hook(uncompiled(before), with_kwargs=True),
            module.register_forward_hook(uncompiled(after), with_kwargs=True, always_call=True),
        ]


class _Picks:
    """The picks of an experts module in one pass, and what they added."""

    def __init__(self, ids: torch.Tensor, weights: torch.Tensor) -> None:
        self.ids, self.weights = ids, weights.detach()
        self.is_listening = False
        self.summed: torch.Tensor | None = None  # [rows, k, hidden]
        self._added: list[tuple[torch.Tensor, torch.Tensor]] = []  # rows, weighted outputs: one expert after the other
        self._stack = contextlib.ExitStack()

    def listen(self, hidden: torch.Tensor, implementation: str | None) -> torch.Tensor:
        """Begin to note what is added; return what the module is to be given for its hidden states."""
        self.is_listening = True
        if implementation in ("eager", None):
            return watched(hidden, lambda rows, outputs: self._added.append((rows, outputs.detach())))
        self._stack.enter_context(_Summing(self))
        return hidden

    def close(self) -> None:
        """End noting; what was noted stays."""
        self._stack.close()

    def contribution(self, h: torch.Tensor) -> Contribution | torch.Tensor | None:
        """What each pick did to the layer's output, or None where the implementation does not show it."""
        if self.summed is not None:
            return of_picks(self.summed, h)
        experts = sorted(set(self.ids.flatten().tolist()))  # the library's eager loops take them in this order
        if len(experts) != len(self._added):
            return None
        return of_experts(
            self.ids, [Added(expert, *part) for expert, part in zip(experts, self._added, strict=True)], h
        )


class _Summing(TorchFunctionMode):
    """Notes the weighted outputs that an implementation sums up over its picks; changes nothing."""

    def __init__(self, picks: _Picks) -> None:
        super().__init__()
        self._picks = picks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.sum and args[0].dim() == 3 and args[0].shape[:2] == self._picks.ids.shape:
            self._picks.summed = args[0].detach()
        return func(*args, **(kwargs or {}))


def is_selected(place: ExpertsModule, select: Selection | None) -> bool:
    """Whether routing of this layer is told."""
    return select is None or place.layer in select.get(place.component, ())


def check_selection(modules: Collection[ExpertsModule], select: Selection | None) -> None:
    """Raise ConfigError for a component that is not there, or layers of it that have no experts."""
    for component, layers in (select or {}).items():
        have = sorted(place.layer for place in modules if place.component == component)
        if not have or not set(layers) & set(have):
            known = sorted({place.component for place in modules})
            raise ConfigError(
                f"select names {component}, layers {list(layers)}: nothing there; choose among {', '.join(known)}"
                + (f", layers {have[0]}..{have[-1]}" if have else "")
            )
