"""The seam: the family's own eager forward, with each expert's weights taken from the cache when it asks for them.

transformers sends every MoE family through one experts interface. The implementation registered here calls the
forward that the family's author wrote, and only what `self.gate_up_proj[expert]` returns is ours. So the result is
the stock one bit for bit by construction, and no family needs code of its own. What each pick contributed is read
from what that forward adds up (contributions.py), so nothing is computed twice. Where that forward is the library's own
loop, it goes a shorter way to the same bits (eager_loop.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from segmoe import eager_loop
from segmoe.contributions import Added, is_small_enough, of_experts, ordinary, watched
from segmoe.errors import Unsupported
from segmoe.events import Contribution, ExpertKey
from segmoe.guessing import Router
from segmoe.telling import Picks, tell_later

if TYPE_CHECKING:
    from segmoe.manifest import ExpertsModule
    from segmoe.runtime import Runtime

IMPLEMENTATION = "segmented"


class Stack:
    """Stands where a parameter stacked over experts was: `stack[expert]` is that expert's tensor, in memory by then."""

    def __init__(self, seam: Seam, name: str) -> None:
        self._seam = seam
        self._name = name

    def __getitem__(self, expert: Any) -> torch.Tensor:
        tensor: torch.Tensor = self._seam.fetch(int(expert))[self._name]
        return tensor


class _Open(NamedTuple):
    """A layer's picks between its experts and its output."""

    topk_ids: torch.Tensor  # [rows, k]
    topk_weights: torch.Tensor  # [rows, k]
    added: list[Added]


class Seam:
    """One experts module of a segmented model."""

    def __init__(self, runtime: Runtime, place: ExpertsModule, module: torch.nn.Module) -> None:
        self.place = place
        self._open: _Open | None = None
        self.is_told = True
        self.far: Router | None = None  # asked at the experts of the layer before
        self.near: Router | None = None  # asked before attention
        self.following: Seam | None = None  # of the next layer
        self._runtime = runtime
        self._keys = [ExpertKey(place.component, place.layer, expert) for expert in range(place.num_experts)]
        self._eager = type(module).forward.__wrapped__  # type: ignore[attr-defined]
        self._is_known = eager_loop.is_known(self._eager)
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

    def has_all(self) -> bool:
        """Whether all that this layer asks for is there, and stays."""
        return self._runtime.cache.has_expected

    def is_awaited(self, expert: int) -> bool:
        """Whether a thread is still reading an expert that this layer asks for."""
        return self._runtime.cache.is_awaited(self._keys[expert])

    def at_hand(self, expert: int) -> Any | None:
        """The tensors of an expert that this layer will ask for, if they are there."""
        return self._runtime.cache.at_hand(self._keys[expert])

    def forward(self, module: Any, hidden: torch.Tensor, ids: Any, weights: Any) -> torch.Tensor:
        """Run the family's forward on [rows, hidden], and keep what was picked, to be told."""
        if hidden.requires_grad and torch.is_grad_enabled():
            raise Unsupported("a segmented model cannot be trained: its experts are read-only; use torch.no_grad()")
        runtime = self._runtime
        if hidden.device.type != runtime.device.type:
            raise Unsupported(f"the experts are on {runtime.device}, the hidden states on {hidden.device}")
        self._current = None
        picks = ids.flatten().tolist()
        distinct = sorted(set(picks))  # the order in which every family's forward asks
        expected = [self._keys[expert] for expert in distinct if expert < len(self._keys)]
        runtime.cache.expect(expected, self._guess_next(hidden, ids))
        is_told = runtime.is_capturing and self.is_told
        added: list[Added] | None = None
        if is_told and runtime.capture == "contribution" and is_small_enough(hidden, ids):
            added = []
        try:
            if self._is_known and eager_loop.serves(hidden, distinct, module.num_experts):
                output = self._of_known(module, hidden, ids, weights, picks, distinct, added)
            else:
                output = self._of_all(module, hidden, ids, weights, added)
            if added is not None:
                self._open = _Open(ids, weights, added)
            elif is_told:
                self._tell(ids, weights, None)
            return output
        finally:
            self._current = self._tensors = None

    def _of_all(
        self, module: Any, hidden: torch.Tensor, ids: Any, weights: Any, added: list[Added] | None
    ) -> torch.Tensor:
        if added is None:
            return self._eager(module, hidden, ids, weights)  # type: ignore[no-any-return]

        def note(rows: torch.Tensor, outputs: torch.Tensor) -> None:
            added.append(Added(cast("int", self._current), rows, outputs))

        return ordinary(self._eager(module, watched(hidden, note), ids, weights))

    def _of_known(
        self,
        module: Any,
        hidden: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        picks: list[int],
        distinct: list[int],
        added: list[Added] | None,
    ) -> torch.Tensor:
        note = None if added is None else lambda *one: added.append(Added(*one))
        if eager_loop.is_one_token(hidden, picks, distinct):
            return eager_loop.of_one_token(module, hidden, weights, picks, self, note)
        return eager_loop.of_rows(module, hidden, ids, weights, self, note)

    def before_layer(self, h: torch.Tensor) -> None:
        """Take what comes into the decoder layer [batch, length, hidden], to say what it is likely to ask for."""
        if self._runtime.cache.can_prefetch:
            self._runtime.cache.foresee(self._likely(self.near, h.reshape(-1, h.shape[-1])))

    def _guess_next(self, hidden: torch.Tensor, ids: torch.Tensor) -> list[ExpertKey]:
        """Experts that the next layer is likely to ask for, by what comes to this one's; and learn from `ids`."""
        for router in (self.far, self.near):
            if router is not None:
                router.learn(ids)
        following = self.following
        return following._likely(following.far, hidden) if following and self._runtime.cache.can_prefetch else []

    def _likely(self, router: Router | None, hidden: torch.Tensor) -> list[ExpertKey]:
        return [] if router is None else [self._keys[expert] for expert in router.guess(hidden)]

    def layer_done(self, h: torch.Tensor) -> None:
        """Take the decoder layer's output [batch, length, hidden] and keep what each pick did to it, to be told."""
        picks, self._open = self._open, None
        if picks is not None:
            contributed = of_experts(picks.topk_ids, picks.added, h.reshape(-1, h.shape[-1]))
            self._tell(picks.topk_ids, picks.topk_weights, contributed)

    def _tell(self, ids: torch.Tensor, weights: torch.Tensor, contributed: Contribution | torch.Tensor | None) -> None:
        runtime = self._runtime
        tokens = runtime.tokens_of(self.place.root, len(ids))
        picks = Picks(runtime.cache.step, self.place, tokens, ids, weights, contributed)
        tell_later(runtime._pass, picks, runtime.emit, runtime.capture)


def _segmented(module: Any, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    seam: Seam | None = getattr(module, "_segmoe", None)
    if seam is None:
        raise Unsupported("this model was not loaded by segmoe.load; load it there or choose another implementation")
    return seam.forward(module, hidden, ids, weights)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _segmented)
