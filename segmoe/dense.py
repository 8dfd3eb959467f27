"""The weights beside the experts: those that every token is multiplied by, and embeddings, of which it needs one row.

Attention's projections are read whole for each token, as experts are, and gain as much by the layout that oneDNN
multiplies fastest (packing.py), so they are packed once they were used as often as pays; tests/benchmarks/residency.py
decodes with and without. The modules stay transformers' own; only the parameter of an `nn.Linear` is another one. It
multiplies as the plain parameter does, bit for bit, and is the plain one for good as soon as anybody asks for anything
but its product or its shape: nobody ever reads or writes a copy that the model does not use.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

from segmoe import packing
from segmoe.mapping import let_go, read_as_used
from segmoe.packing import Pace

MIN_BYTES = 1 << 20
MAX_BYTES = 1 << 26
"""Larger ones, heads of large vocabularies, stay plain: to prove it takes several times their memory."""

LARGE_BYTES = 1 << 25
"""Embeddings from here on are read row by row. Of smaller ones little is won, and some are looked up whole, as those of
an image's positions."""

_of = torch.Tensor
_TELLS_ONLY = {
    *(
        getattr(_of, name).__get__
        for name in ("shape", "dtype", "device", "layout", "ndim", "requires_grad", "grad", "grad_fn")
    ),
    *(getattr(_of, name).__get__ for name in ("is_meta", "is_cuda", "is_leaf", "is_sparse", "is_quantized")),
    *(_of.size, _of.dim, _of.numel, _of.nelement, _of.element_size, _of.is_floating_point, _of.is_complex),
    *(_of.__len__, _of.__hash__),
}


class DenseWeight(torch.nn.Parameter):
    """A parameter [n, k] in the place of another one, whose memory it takes over."""

    @staticmethod
    def __new__(cls, weight: torch.nn.Parameter, pace: Pace) -> DenseWeight:
        """Same shape, dtype and device; it has no storage that anything else could see."""
        made: DenseWeight = torch.Tensor._make_wrapper_subclass(
            cls, weight.shape, dtype=weight.dtype, device=weight.device, requires_grad=weight.requires_grad
        )
        return made

    def __init__(self, weight: torch.nn.Parameter, pace: Pace) -> None:
        self._weight: torch.nn.Parameter | None = weight  # None while it is packed
        self._packed: torch.Tensor | None = None
        self._pace: Pace | None = pace  # None once it is plain for good
        self._uses = 0

    @property
    def is_packed(self) -> bool:
        """Whether it lies in the layout that multiplies fastest."""
        return self._packed is not None

    def plain(self) -> torch.nn.Parameter:
        """The plain parameter, from now on for good."""
        self._pace = None
        if self._weight is None:
            assert self._packed is not None
            with torch.inference_mode(False), torch.no_grad():
                self._weight = torch.nn.Parameter(self._packed.to_dense())
            self._packed = None
        return self._weight

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not kwargs and type(args[1]) is cls:
            return args[1]._linear(args[0], args[2] if len(args) == 3 else None)
        if func in _TELLS_ONLY:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        args, kwargs = tree_map_only(cls, cls.plain, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map_only(cls, cls.plain, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _linear(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self._weight is None and x.shape[-1:] == self.shape[1:] and not x.numel():  # nothing is proved of no rows
            return x.new_empty((*x.shape[:-1], len(self)))
        if self._weight is not None and self._pace is not None and x.numel():
            self._uses += 1
            if self._uses >= packing.AFTER_USES and not self._pace.is_resting:
                with self._pace.work():
                    self._pack(x, bias)
        if self._packed is not None and self._serves(x, bias):
            return packing.multiply(x, self._packed)
        return F.linear(x, self.plain() if self._weight is None else self._weight, bias)

    def _pack(self, x: torch.Tensor, bias: torch.Tensor | None) -> None:
        assert self._weight is not None
        if not self._serves(x, bias) or not packing.may_pack(self._weight):
            self._pace = None
            return
        with torch.inference_mode(False), torch.no_grad():
            self._packed = packing.pack_to_stay(self._weight)
        let_go(self._weight)
        self._weight = None

    def _serves(self, x: torch.Tensor, bias: torch.Tensor | None) -> bool:
        return bias is None and not torch.is_grad_enabled() and packing.serves(x, self.shape, self.dtype)


def take_over(model: torch.nn.Module, pace: Pace) -> None:
    """Put a DenseWeight in the place of the weight of each `nn.Linear` of the model where packing it could pay."""
    places = _places(model)
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.bias is None:
            weight = module.weight
            if (
                type(weight) is torch.nn.Parameter
                and places[weight.data_ptr()] == 1  # else it is tied to another, or on the meta device
                and MIN_BYTES <= weight.nbytes <= MAX_BYTES
                and weight.requires_grad
                and packing.is_candidate(weight)
            ):
                module.weight = DenseWeight(weight, pace)


def leave_rows_on_disk(model: torch.nn.Module) -> None:
    """Have a large embedding's rows read each when a token first asks for it, if nothing multiplies by all of them.

    A row alone takes 0.6 to 1.4 ms of a cold disk, once, and 0.13 to 0.19 each in a prompt of 256, where a kernel that
    reads 8 MB ahead took 10 to 12 alone. Read whole on loading, the 622 MB of Qwen3-30B's were in memory from then on:
    3.5% of what a quarter of its experts takes with all weights beside them.
    """
    places = _places(model)
    for module in model.modules():
        if not isinstance(module, torch.nn.Embedding):
            continue
        weight = module.weight
        if weight.nbytes >= LARGE_BYTES and places[weight.data_ptr()] == 1:  # else it is the head, too
            read_as_used(weight)


def _places(model: torch.nn.Module) -> Counter[int]:
    """How many parameters lie at each address; those on the meta device all at 0."""
    return Counter(parameter.data_ptr() for _, parameter in model.named_parameters(remove_duplicate=False))
