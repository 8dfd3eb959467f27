"""What each pick did to its layer's output: noted while the family's own forward adds it up, measured afterwards.

Nothing is computed twice and nothing is changed. The library's experts loops begin with `zeros_like(hidden)` and add
each expert's weighted outputs to it by `index_add_`. The hidden states that they are given are a tensor subclass, which
hears of these two calls and hands everything else through; to listen to all calls would take as long as the sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from segmoe.events import Contribution

MAX_KEPT_BYTES = 1 << 30
"""Picks of a layer are kept until the layer's output is known; above this their contributions are not captured."""

CHUNK_NUMBERS = 1 << 19
"""Measured at a time: 2 MiB in float32, which stays in a core's own cache."""

Note = Callable[[torch.Tensor, torch.Tensor], None]
"""Is told of rows, and of what is added to them, [len(rows), hidden]."""


class Added(NamedTuple):
    """What one expert added to the rows that picked it."""

    expert: int
    rows: torch.Tensor  # [n]
    outputs: torch.Tensor  # [n, hidden], weighted


class Watched(torch.Tensor):
    """Hidden states whose sum of outputs is listened to. What is made of them is an ordinary tensor.

    >>> noted = []
    >>> hidden = watched(torch.ones(3, 2), lambda rows, outputs: noted.append((rows.tolist(), outputs.tolist())))
    >>> output = torch.zeros_like(hidden)
    >>> _ = output.index_add_(0, torch.tensor([2]), 3 * hidden[[2]])
    >>> noted, type(hidden[[2]]).__name__, ordinary(output).tolist()
    ([([2], [[3.0, 3.0]])], 'Tensor', [[0.0, 0.0], [0.0, 0.0], [3.0, 3.0]])
    """

    plain: torch.Tensor
    note: Note

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
            if func is torch.zeros_like:
                result = result.as_subclass(_Sum)
                result.note = args[0].note
        return result

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.plain[index]  # the one call per expert: past the dispatch above, which takes longer than the rows


class _Sum(torch.Tensor):
    """The sum of outputs under way."""

    note: Note
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # all else is as if plain

    def index_add_(self, dim: int, index: torch.Tensor, source: torch.Tensor, **options: Any) -> Any:
        self.note(index, source)
        return super().index_add_(dim, index, source, **options)


def watched(hidden: torch.Tensor, note: Note) -> torch.Tensor:
    """Return the same numbers in the same memory; `note` is told of what is added to a tensor of zeros like them."""
    result = hidden.as_subclass(Watched)
    result.plain, result.note = hidden, note
    return result


def ordinary(output: torch.Tensor) -> torch.Tensor:
    """Return what a forward that saw watched states gave, as if it had not."""
    return output.as_subclass(torch.Tensor) if isinstance(output, (Watched, _Sum)) else output


def is_small_enough(hidden: torch.Tensor, ids: torch.Tensor) -> bool:
    """Whether the outputs of these picks may be kept for as long as the layer takes."""
    return ids.numel() * hidden.shape[-1] * hidden.element_size() <= MAX_KEPT_BYTES


def of_experts(ids: torch.Tensor, added: list[Added], h: torch.Tensor) -> Contribution | torch.Tensor | None:
    """What the picks ids [rows, k] added, with the layer's output h [rows, hidden]; few rows are left to be measured.

    None where a family's experts do not show it, see other rows than the layer, or a narrower state.
    """
    if not added or h.shape != (len(ids), added[0].outputs.shape[-1]):
        return None
    if len(ids) == 1 and len(added) == ids.shape[1]:  # decoding one text: nothing to be sorted but the picks
        of_expert = {part.expert: part.outputs for part in added}
        return torch.cat([*(of_expert[expert] for expert in ids[0].tolist()), h])[None]
    picked = ids.cpu().numpy()
    counts = [len(part.rows) for part in added]
    rows = np.concatenate([part.rows.cpu().numpy() for part in added])
    place = (picked[rows] == np.repeat([part.expert for part in added], counts)[:, None]).argmax(axis=1)
    order = np.full((len(h), picked.shape[1] + 1), len(rows) + len(h))  # the last vector stands for no pick
    order[rows, place] = np.arange(len(rows))
    order[:, -1] = np.arange(len(rows), len(rows) + len(h))
    vectors = torch.cat([*(part.outputs for part in added), h, torch.zeros_like(h[:1])])
    return _few_or_measured(vectors, torch.from_numpy(order).to(h.device))


def of_picks(outputs: torch.Tensor, h: torch.Tensor) -> Contribution | torch.Tensor | None:
    """The same of weighted outputs [rows, k, hidden]."""
    rows, k, hidden = outputs.shape
    if h.shape != (rows, hidden):
        return None
    numbers = torch.arange(rows * (k + 1), device=h.device)
    order = torch.cat((numbers[: rows * k].view(rows, k), numbers[rows * k :, None]), dim=1)
    return _few_or_measured(torch.cat((outputs.reshape(-1, hidden), h)), order)


def _few_or_measured(vectors: torch.Tensor, order: torch.Tensor) -> Contribution | torch.Tensor:
    """Leave what is less than a chunk to be measured with other layers; the rest would take too much memory."""
    if order.numel() * vectors.shape[-1] <= CHUNK_NUMBERS:
        return vectors.index_select(0, order.reshape(-1)).view(*order.shape, -1)
    return measured(vectors, order)


def measured(x: torch.Tensor, order: torch.Tensor | None = None) -> Contribution:
    """Take all products of each row's X = [c_1 .. c_k, h] at once; x is [rows, k + 1, hidden], or vectors in an order.

    G = X X^T in float32 holds |c|^2 on its diagonal and h.c in its last column; with u = 1 / |c|, |sum of c / |c||^2 is
    u G u over the picks.

    >>> found = measured(torch.tensor([[[3.0, 4.0], [-3.0, 0.0], [1.0, 1.0]]]))
    >>> found.c_norm.tolist(), found.h_dot_c.tolist(), round(float(found.sum_unit_norm[0]), 3)
    ([[5.0, 3.0]], [[7.0, -3.0]], 0.894)
    """
    rows, picks = x.shape[:2] if order is None else order.shape
    chunk = max(1, CHUNK_NUMBERS // (picks * x.shape[-1]))
    products = []
    for start in range(0, rows, chunk):
        part = slice(start, start + chunk)
        if order is None:
            few = x[part].float()
        else:
            few = x.index_select(0, order[part].reshape(-1)).float().view(-1, picks, x.shape[-1])
        products.append(torch.bmm(few, few.transpose(1, 2)))
    g = (products[0] if len(products) == 1 else torch.cat(products)).cpu().numpy()
    norms = np.sqrt(np.einsum("rii->ri", g))
    u = np.divide(1.0, norms[:, :-1], out=np.zeros_like(norms[:, :-1]), where=norms[:, :-1] > 0)
    return Contribution(
        c_norm=norms[:, :-1],
        h_dot_c=g[:, :-1, -1].copy(),  # a view would keep all products
        h_norm=norms[:, -1],
        sum_unit_norm=np.sqrt(np.maximum(np.einsum("ri,rij,rj->r", u, g[:, :-1, :-1], u), 0.0)),
    )
