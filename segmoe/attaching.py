"""Listen to a stock model that is loaded already, with any experts implementation. Segmenting one is runtime.py.

    attached = segmoe.attach(model, sink, capture="contribution")
    model.generate(**inputs)
    attached.detach()

Only hooks are added, and `detach` removes them. All weights are in memory, so there are no residency events. What a
pick contributed is read from the last step of the implementation, `index_add_` of each expert (eager) or a sum over
picks (batched_mm, grouped_mm); nothing is computed twice. Other implementations, and compiled models, tell routing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from segmoe import passes
from segmoe.cache import Counters
from segmoe.errors import ConfigError, Unsupported
from segmoe.events import CAPTURES, Capture, Contribution, EventSink, GuardedSink
from segmoe.experts import MAX_KEPT_BYTES, Pick, contribution, routing_event
from segmoe.manifest import ExpertsModule, experts_modules

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
        reading: list[_Reader] = []
        picks: list[tuple[Pick, _Reader]] = []

        def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, ids, weights = (*args, *kwargs.values())[:3]
            if self._pass is not None and self._is_told:
                kept = ids.numel() * hidden.shape[-1] * hidden.element_size()
                reader = _Reader(ids, weights)
                if self.capture == "contribution" and kept <= MAX_KEPT_BYTES:
                    reader.open()
                reading.append(reader)

        def after(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not reading:
                return
            reader = reading.pop()
            reader.close()
            if output is None:
                return  # the forward raised
            if reader.is_open:
                picks[:] = [(Pick(reader.ids, reader.weights, reader.added(), output), reader)]
            else:
                self._tell(place, reader.ids, reader.weights, None)

        def layer_done(module: Any, args: Any, output: Any) -> None:
            if picks:
                pick, reader = picks.pop()
                h = (output[0] if isinstance(output, tuple) else output).reshape(-1, pick.output.shape[-1])
                self._tell(place, pick.topk_ids, pick.topk_weights, reader.contribution(pick, h))

        self._handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True, always_call=True),
            block.register_forward_hook(layer_done),
        ]

    def _tell(self, place: ExpertsModule, ids: Any, weights: Any, contributed: Contribution | None) -> None:
        current = self._pass
        if current is not None:
            tokens = passes.tokens_of(current, place.root, len(ids))
            self._sink.emit(routing_event(self._step, place, tokens, ids, weights, contributed, self.capture))

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
            if is_predicting and self._is_told and self.capture != "off":
                call = passes.arguments(module, args, kwargs)
                passes.read_predictions(current, call.get("input_ids"), getattr(output, "logits", None))
            self._inside.pop()
            if not self._inside:
                self._pass = None
                if not self._is_told:
                    return
                self._sink.emit(passes.step_done(current, self._step, Counters()))

        self._handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True, always_call=True),
        ]


class _Reader(TorchFunctionMode):
    """Notes the weighted outputs of the picks as an experts implementation adds them up; changes nothing."""

    def __init__(self, ids: torch.Tensor, weights: torch.Tensor) -> None:
        super().__init__()
        self.ids, self.weights = ids, weights
        self.is_open = False
        self._stack = contextlib.ExitStack()
        self._calls: list[tuple[torch.Tensor, torch.Tensor]] = []  # rows, weighted outputs: one expert after the other
        self._summed: torch.Tensor | None = None  # [rows, k, hidden]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.index_add_:
            self._calls.append((args[2], args[3]))
        elif func is torch.Tensor.sum and args[0].shape[:2] == self.ids.shape and args[0].dim() == 3:
            self._summed = args[0]
        return func(*args, **kwargs)

    def open(self) -> None:
        """Begin to note."""
        self._stack.enter_context(self)
        self.is_open = True

    def close(self) -> None:
        """End noting; what was noted stays."""
        self._stack.close()

    def added(self) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        """What was added for which expert: the library's eager loops take the experts that were picked in order."""
        experts = sorted(set(self.ids.flatten().tolist()))
        if len(experts) != len(self._calls):
            return []
        return [(expert, *call) for expert, call in zip(experts, self._calls, strict=True)]

    def contribution(self, pick: Pick, h: torch.Tensor) -> Contribution | None:
        """What each pick did to the layer's output, or None where the implementation does not show it."""
        c = self._summed
        if c is None:
            return contribution(pick, h)
        if h.shape != pick.output.shape:
            return None
        c, h = c.float(), h.float()
        return Contribution(
            c_norm=torch.linalg.vector_norm(c, dim=-1).cpu().numpy(),
            h_dot_c=(h[:, None] * c).sum(-1).cpu().numpy(),
            h_norm=torch.linalg.vector_norm(h, dim=-1).cpu().numpy(),
            sum_c_norm=torch.linalg.vector_norm(pick.output.float(), dim=-1).cpu().numpy(),
        )


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
