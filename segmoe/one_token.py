"""The experts of one token, computed as the library's eager loop computes them and without finding out who they are.

That loop is made for many tokens: for each expert it looks up which rows picked it, gathers them and scatters what they
add. With one row, and with experts that all are others, nothing is left to find: the same products and sums in the same
order on the same numbers, and so the same bits (but of what is not a number, which differ within one sum of torch's). A
layer of Qwen3-30B's width, 8 of 128 experts, took 0.84 to 0.88 of the eager loop's time, a pass of three layers 0.91
(two cores, bf16). 54 of the 65 experts modules of transformers 5.23 have that very loop, word for word, which is how it
is known here; all others run their own.
"""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from segmoe.manifest import ALIGNMENT

EAGER_LOOPS = ("fc9abf5b6fd118945da4756230ab5f1a6684a41ae5e5c5800e30f6795d2ff92a",)
"""SHA-256 of the source of the forward that is computed here. Another release may say it in other words: then these are
no longer met, a test fails, and all is computed as the library does, which is slower."""

GATE_UP, DOWN = "gate_up_proj", "down_proj"


class Source(Protocol):
    """Where experts come from, each in its turn."""

    def fetch(self, expert: int) -> Any:
        """Its tensors by name; waits for them. Valid until another is fetched, if not all are there."""

    def has_all(self) -> bool:
        """Whether all that the layer asks for is there and stays until its end, whatever of it is fetched."""

    def is_awaited(self, expert: int) -> bool:
        """Whether to fetch it now would mean to wait for a thread that reads it."""

    def at_hand(self, expert: int) -> Any | None:
        """The tensors of one whose turn has not come, if they are there; valid until the next is fetched."""


@lru_cache(maxsize=256)
def is_known(forward: Callable[..., Any]) -> bool:
    """Whether this is the loop that `compute` stands for."""
    try:
        source = textwrap.dedent(inspect.getsource(forward))
    except (OSError, TypeError):  # there is no source, as in a frozen program
        return False
    return hashlib.sha256(source.encode()).hexdigest() in EAGER_LOOPS


def serves(hidden: torch.Tensor, picks: Sequence[int], distinct: int) -> bool:
    """Whether hidden [rows, hidden] is one row on the CPU that picks distinct experts, and lies as a gathered one."""
    return (
        len(hidden) == 1
        and len(picks) == distinct
        and hidden.device.type == "cpu"
        and hidden.is_contiguous()
        and hidden.data_ptr() % ALIGNMENT == 0
    )


def compute(
    module: Any,
    hidden: torch.Tensor,
    weights: torch.Tensor,
    picks: Sequence[int],
    source: Source,
    note: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Add up what the picked experts make of hidden [1, hidden], weighted by weights [1, k], in the experts' order.

    While one of them is being read, those behind it that are there are computed, and added in their turn: a decode
    pass from a cold disk took .966 [.955, .977] of the time (a quarter of 12 layers of Qwen3-30B's width in memory).
    Where all are there, all are fetched at once, since to multiply by one drives the code that fetches the next out of
    the processor's caches: one by one that took another .6% of a decode step. `note` is told who adds what, [1,
    hidden]. Picks of no expert, which expert parallelism marks by a number behind the last, add nothing.
    """
    output = torch.zeros_like(hidden)
    act_fn, dtype = module.act_fn, hidden.dtype
    of_picks = dict(zip(picks, weights.chunk(weights.shape[1], dim=1), strict=False))  # there may be more weights

    def add_of(expert: int, tensors: Any) -> torch.Tensor:
        gate, up = F.linear(hidden, tensors[GATE_UP]).chunk(2, dim=-1)
        return F.linear(act_fn(gate) * up, tensors[DOWN]) * of_picks[expert]

    experts = sorted(expert for expert in picks if expert != module.num_experts)
    early: dict[int, torch.Tensor] = {}
    fetched = {expert: source.fetch(expert) for expert in experts} if source.has_all() else None
    for turn, expert in enumerate(experts, 1):
        for later in experts[turn:] if fetched is None else ():
            if not source.is_awaited(expert):
                break
            if later not in early and (tensors := source.at_hand(later)) is not None:
                early[later] = add_of(later, tensors)
        tensors = source.fetch(expert) if fetched is None else fetched[expert]
        added = early.pop(expert) if expert in early else add_of(expert, tensors)
        if added.dtype != dtype:
            added = added.to(dtype)
        if note is not None:
            note(expert, added)
        output.add_(added)
    return output
