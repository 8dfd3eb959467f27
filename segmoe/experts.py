"""The seam: the family's own eager forward, with each expert's weights taken from the cache when it asks for them.

transformers sends every MoE family through one experts interface. The implementation registered here calls the
forward that the family's author wrote, and only what `self.gate_up_proj[expert]` returns is ours. So the result is
the stock one bit for bit by construction, and no family needs code of its own. What each pick contributed is read
from the family's own `index_add_` calls, so nothing is computed twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from segmoe.errors import Unsupported
from segmoe.events import Capture, Contribution, Counted, ExpertKey, Routed
from segmoe.passes import Tokens

if TYPE_CHECKING:
    from segmoe.manifest import ExpertsModule
    from segmoe.runtime import Runtime

IMPLEMENTATION = "segmented"

MAX_KEPT_BYTES = 1 << 30
"""Picks of a layer are kept until the layer's output is known; above this their contributions are not captured."""


class Stack:
    """Stands where a parameter stacked over experts was: `stack[expert]` is that expert's tensor, in memory by then."""

    def __init__(self, seam: Seam, name: str) -> None:
        self._seam = seam
        self._name = name

    def __getitem__(self, expert: Any) -> torch.Tensor:
        tensor: torch.Tensor = self._seam.fetch(int(expert))[self._name]
        return tensor


class Pick(NamedTuple):
    """A layer's picks between its experts and its output."""

    topk_ids: torch.Tensor  # [rows, k]
    topk_weights: torch.Tensor  # [rows, k]
    added: list[tuple[int, torch.Tensor, torch.Tensor]]  # expert, rows, weighted outputs [len(rows), hidden]
    output: torch.Tensor  # [rows, hidden]


class Seam:
    """One experts module of a segmented model."""

    def __init__(self, runtime: Runtime, place: ExpertsModule, module: torch.nn.Module) -> None:
        self.place = place
        self.picks: Pick | None = None
        self.is_told = True
        self._runtime = runtime
        self._keys = [ExpertKey(place.component, place.layer, expert) for expert in range(place.num_experts)]
        self._eager = type(module).forward.__wrapped__  # type: ignore[attr-defined]
        self._current: int | None = None
        self._tensors: Any = None
        module._segmoe = self  # type: ignore[assignment]
        for name in place.parameters:
            setattr(module, name, Stack(self, name))

    def fetch(self, expert: int) -> Any:
        """The expert's tensors; one access to the cache however many of its parameters are asked for."""
        if expert != self._current:
            self._tensors = self._runtime.cache.get(self._keys[expert])
            self._current = expert
        return self._tensors

    def forward(self, module: torch.nn.Module, hidden: torch.Tensor, ids: Any, weights: Any) -> torch.Tensor:
        """Run the family's forward on [rows, hidden], and tell the sink what was picked."""
        if hidden.requires_grad and torch.is_grad_enabled():
            raise Unsupported("a segmented model cannot be trained: its experts are read-only; use torch.no_grad()")
        runtime = self._runtime
        if hidden.device.type != runtime.device.type:
            raise Unsupported(f"the experts are on {runtime.device}, the hidden states on {hidden.device}")
        self._current = None
        picked = sorted(set(ids.flatten().tolist()))  # the order in which every family's forward asks
        runtime.cache.expect([self._keys[expert] for expert in picked if expert < len(self._keys)])
        try:
            if not (runtime.is_capturing and self.is_told):
                return self._eager(module, hidden, ids, weights)  # type: ignore[no-any-return]
            kept = ids.numel() * hidden.shape[-1] * hidden.element_size()
            if runtime.capture != "contribution" or kept > MAX_KEPT_BYTES:
                output = self._eager(module, hidden, ids, weights)
                self.emit(ids, weights, None)
            else:
                with _Added(self) as added:
                    output = self._eager(module, hidden, ids, weights)
                self.picks = Pick(ids, weights, added.calls, output)
            return output  # type: ignore[no-any-return]
        finally:
            self._current = self._tensors = None

    @property
    def current(self) -> int | None:
        """The expert whose tensors were asked for last."""
        return self._current

    def layer_done(self, h: torch.Tensor) -> None:
        """Take the decoder layer's output [batch, length, hidden] and tell what each pick did to it."""
        picks, self.picks = self.picks, None
        if picks is not None:
            self.emit(picks.topk_ids, picks.topk_weights, contribution(picks, h.reshape(-1, h.shape[-1])))

    def emit(self, ids: torch.Tensor, weights: torch.Tensor, contribution: Contribution | None) -> None:
        """Send one Routed event."""
        runtime = self._runtime
        current = runtime.tokens_of(self.place.root, len(ids))
        runtime.emit(
            routing_event(runtime.cache.step, self.place, current, ids, weights, contribution, runtime.capture)
        )


class _Added(TorchFunctionMode):
    """Notes what the family's forward adds to its output, and for which expert; changes nothing."""

    def __init__(self, seam: Seam) -> None:
        super().__init__()
        self.calls: list[tuple[int, torch.Tensor, torch.Tensor]] = []
        self._seam = seam

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.index_add_ and self._seam.current is not None:
            self.calls.append((self._seam.current, args[2], args[3]))
        return func(*args, **(kwargs or {}))


def contribution(picks: Pick, h: torch.Tensor) -> Contribution | None:
    """What each pick did to the layer's output h [rows, hidden]; None where a family's experts do not show it."""
    if not picks.added or h.shape != picks.output.shape:  # some families' experts see other rows, or a narrower state
        return None
    experts = torch.repeat_interleave(
        torch.tensor([expert for expert, _, _ in picks.added], device=h.device),
        torch.tensor([len(rows) for _, rows, _ in picks.added], device=h.device),
    )
    rows = torch.cat([rows for _, rows, _ in picks.added])
    c = torch.cat([outputs for _, _, outputs in picks.added]).float()
    place = (picks.topk_ids[rows] == experts[:, None]).int().argmax(-1)
    h = h.float()
    c_norm, h_dot_c = torch.zeros(2, *picks.topk_ids.shape, device=h.device)
    c_norm[rows, place] = torch.linalg.vector_norm(c, dim=-1)
    h_dot_c[rows, place] = (h[rows] * c).sum(-1)
    return Contribution(
        c_norm=c_norm.cpu().numpy(),
        h_dot_c=h_dot_c.cpu().numpy(),
        h_norm=torch.linalg.vector_norm(h, dim=-1).cpu().numpy(),
        sum_c_norm=torch.linalg.vector_norm(picks.output.float(), dim=-1).cpu().numpy(),
    )


def routing_event(
    step: int,
    place: ExpertsModule,
    tokens: Tokens,
    ids: torch.Tensor,
    weights: torch.Tensor,
    contributed: Contribution | None,
    capture: Capture,
) -> Routed | Counted:
    """The event of one layer's picks at a capture level."""
    topk_ids, topk_weights = ids.cpu().numpy().astype(np.int16), weights.float().cpu().numpy().copy()
    if capture != "counts":
        return Routed(
            step=step,
            component=place.component,
            layer=place.layer,
            phase=tokens.phase,
            topk_ids=topk_ids,
            topk_weights=topk_weights,
            sequence=tokens.sequence,
            position=tokens.position,
            contribution=contributed,
        )
    real = tokens.position >= 0
    sequences, experts = int(tokens.sequence.max(initial=-1)) + 1, place.num_experts
    cell = (tokens.sequence[real, None] * experts + topk_ids[real]).ravel()
    shape = (sequences, experts)
    return Counted(
        step=step,
        component=place.component,
        layer=place.layer,
        phase=tokens.phase,
        uses=np.bincount(cell, minlength=sequences * experts).astype(np.int32).reshape(shape),
        weights=np.bincount(cell, topk_weights[real].ravel(), sequences * experts).astype(np.float32).reshape(shape),
    )


def _segmented(module: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    seam: Seam | None = getattr(module, "_segmoe", None)
    if seam is None:
        raise Unsupported("this model was not loaded by segmoe.load; load it there or choose another implementation")
    return seam.forward(module, hidden, ids, weights)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _segmented)
