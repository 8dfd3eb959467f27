"""The library's eager loop over experts, to the same bits and without finding out for each expert who picked it.

That loop asks, expert by expert, which rows picked it: in a mask of all experts, that it makes of the picks. Here one
sort of the picks tells it of all: 256 tokens took a layer of Qwen3-30B's width, 8 of 128 experts, .95 of the time (two
cores, bf16; .99 with AVX2's kernels, whose products take four times as long). With one row nothing is left to find, nor
to gather and scatter: .84 to .88, a pass of three layers .91. The products and sums are the same, in the same order, on
the same numbers, and so are the bits (but of one token's sums that are not a number, which differ within one sum of
torch's). One sum of all that the experts add to the rows, instead of one each, gives other bits. 54 of the 65 experts
modules of transformers 5.23 have that very loop, word for word, which is how it is known here; all others run their
own.
"""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers.activations import SiLUActivation

from segmoe.manifest import ALIGNMENT

EAGER_LOOPS = ("fc9abf5b6fd118945da4756230ab5f1a6684a41ae5e5c5800e30f6795d2ff92a",)
"""SHA-256 of the source of the forward that is computed here. Another release may say it in other words: then these are
no longer met, a test fails, and all is computed as the library does, which is slower."""

GATE_UP, DOWN = "gate_up_proj", "down_proj"

SILU = (torch.nn.SiLU, SiLUActivation)
SHARED_FROM = 1 << 15
"""Numbers from which on torch has several threads compute a function."""

Note = Callable[[int, torch.Tensor, torch.Tensor], None]
"""Is told of an expert, of the rows that picked it, and of what it adds to them, [len(rows), hidden]."""


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
    """Whether this is the loop that is computed here."""
    try:
        source = textwrap.dedent(inspect.getsource(forward))
    except (OSError, TypeError):  # there is no source, as in a frozen program
        return False
    return hashlib.sha256(source.encode()).hexdigest() in EAGER_LOOPS


def serves(hidden: torch.Tensor, distinct: Sequence[int], num_experts: int) -> bool:
    """Whether the picks of hidden [rows, hidden], in order and each once, are computed here: on the CPU.

    Of a pick that there cannot be the library's loop says what is wrong with it.
    """
    return hidden.device.type == "cpu" and bool(distinct) and distinct[0] >= 0 and distinct[-1] <= num_experts


def is_one_token(hidden: torch.Tensor, picks: Sequence[int], distinct: Sequence[int]) -> bool:
    """Whether hidden [rows, hidden] is one row that picks distinct experts, and lies as a gathered one."""
    return (
        len(hidden) == 1
        and len(picks) == len(distinct)
        and hidden.is_contiguous()
        and hidden.data_ptr() % ALIGNMENT == 0
    )


def of_rows(
    module: Any,
    hidden: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    source: Source,
    note: Note | None = None,
) -> torch.Tensor:
    """Add up what the picked experts ids [rows, k] make of hidden [rows, hidden], weighted by weights [rows, k].

    `note` is told who adds what to which rows. Picks of no expert, which expert parallelism marks by the number behind
    the last, add nothing.
    """
    output = torch.zeros_like(hidden)
    picks = ids.t().flatten()  # first picks, second picks, ...: in this order the loop finds the rows of an expert
    order = picks.argsort(stable=True)
    of_picks = weights[:, : ids.shape[1]].t().flatten().index_select(0, order)[:, None]
    counts = picks.bincount(minlength=module.num_experts).tolist()[: module.num_experts]
    picked = sum(counts)  # behind them are the picks of none
    parts = (torch.split(whole[:picked], counts) for whole in (order % len(hidden), of_picks))
    for expert, (rows, weighing) in enumerate(zip(*parts, strict=True)):
        if not len(rows):
            continue
        added = (_products(module, hidden.index_select(0, rows), source.fetch(expert)) * weighing).to(output.dtype)
        if note is not None:
            note(expert, rows, added)
        output.index_add_(0, rows, added)
    return output


def of_one_token(
    module: Any,
    hidden: torch.Tensor,
    weights: torch.Tensor,
    picks: Sequence[int],
    source: Source,
    note: Note | None = None,
) -> torch.Tensor:
    """Add up what the picked experts make of hidden [1, hidden], weighted by weights [1, k], in the experts' order.

    While one of them is being read, those behind it that are there are computed, and added in their turn: a decode
    pass from a cold disk took .966 [.955, .977] of the time (a quarter of 12 layers of Qwen3-30B's width in memory).
    Where all are there, all are fetched at once, since to multiply by one drives the code that fetches the next out of
    the processor's caches: one by one that took another .6% of a decode step. `note` and picks of no expert are as in
    `of_rows`.
    """
    places = sorted((place for place, pick in enumerate(picks) if pick != module.num_experts), key=picks.__getitem__)
    experts = [picks[place] for place in places]
    if experts and source.has_all():
        products = _at_once(module, hidden, [source.fetch(expert) for expert in experts])
        weighted = (products * weights[0].index_select(0, torch.tensor(places))[:, None]).to(hidden.dtype)
        in_turn: Iterable[tuple[int, torch.Tensor]] = zip(experts, torch.split(weighted, 1), strict=True)
    else:
        of_picks = dict(zip(picks, weights.chunk(weights.shape[1], dim=1), strict=False))  # there may be more weights
        in_turn = _one_by_one(module, hidden, experts, of_picks, source)
    output = torch.zeros_like(hidden)
    for expert, added in in_turn:
        if note is not None:
            note(expert, torch.zeros(1, dtype=torch.int64), added)
        output.add_(added)
    return output


def _one_by_one(
    module: Any, hidden: torch.Tensor, experts: Sequence[int], of_picks: Mapping[int, torch.Tensor], source: Source
) -> Iterator[tuple[int, torch.Tensor]]:
    early: dict[int, torch.Tensor] = {}

    def added(expert: int, tensors: Any) -> torch.Tensor:
        return (_products(module, hidden, tensors) * of_picks[expert]).to(hidden.dtype)

    for turn, expert in enumerate(experts, 1):
        for later in experts[turn:]:
            if not source.is_awaited(expert):
                break
            if later not in early and (tensors := source.at_hand(later)) is not None:
                early[later] = added(later, tensors)
        tensors = source.fetch(expert)
        yield expert, early.pop(expert) if expert in early else added(expert, tensors)


def _at_once(module: Any, hidden: torch.Tensor, experts: Sequence[Any]) -> torch.Tensor:
    """What some experts make of hidden [1, hidden], a row each.

    What is small is done for all of them in one call: a layer of Qwen3-30B's width took .95 of the time (AVX512; .98
    with AVX2's kernels).
    """
    inner = _activated(module.act_fn, [F.linear(hidden, tensors[GATE_UP]) for tensors in experts])
    return torch.cat([F.linear(x, tensors[DOWN]) for x, tensors in zip(inner, experts, strict=True)])


def _activated(act_fn: Any, gates_up: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """The activation of gates [1, n], times what stands beside them, each as if it were alone.

    A number's place in memory decides whether torch's vector or scalar code computes it, and these may differ in the
    last bit; a row's address decides in which order some products sum. SiLU is computed row by row, and whole vectors
    fill rows of 64; so all is as in a row by itself, unless there are as many numbers as torch shares out to threads.
    Of another function this is not known.
    """
    width = gates_up[0].shape[1]
    if type(act_fn) in SILU and width % 128 == 0 and len(gates_up) * width < SHARED_FROM:
        gate, up = torch.cat(list(gates_up)).chunk(2, dim=-1)
        return torch.split(act_fn(gate) * up, 1)
    return [_inner(act_fn, gate_up) for gate_up in gates_up]


def _products(module: Any, x: torch.Tensor, tensors: Any) -> torch.Tensor:
    """What one expert makes of x [rows, hidden]."""
    return F.linear(_inner(module.act_fn, F.linear(x, tensors[GATE_UP])), tensors[DOWN])


def _inner(act_fn: Any, gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    product: torch.Tensor = act_fn(gate) * up
    return product
