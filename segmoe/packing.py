"""Weights in the layout that oneDNN multiplies fastest, where that provably gives the same bits. CPU, bf16 and fp16.

`F.linear` on a plain bf16 weight has oneDNN bring the weight into its own blocked layout at every call. A weight packed
once saves that: at a width of 2048 and 768 one row takes 0.65 of the time, 16 rows 0.77, 64 rows 0.94 (two cores with
AVX512-BF16). The product sums in the same order, which is proved and not assumed: see `proves_equal`. A weight of which
it does not stays plain: with AMX and two threads a packed one of [1536, 2048] sums in another order for 33 to 127 rows.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_map_only

from segmoe import kernel
from segmoe.memory import give_back_freed

MIN_BYTES = 1 << 18
"""Smaller weights gain less than the detour through Python costs."""

PROVED_ROWS = (1, 16, 33, 64, 96, 128, 256)
"""For so many rows it is proved before a weight is packed. Where another number differs, the weight becomes plain when
that comes, and what packing it cost is lost."""

AFTER_USES = 64
"""Products before a weight is packed. Packing an expert of Qwen3-30B's width costs what 9 to 11 uses then gain (AVX512,
one row or 16, one thread or two) or 150 (AMX, where new memory takes 2 ms a MB): what leaves before gains nothing."""

REST = 4
"""Times as long as packing took, that nothing is packed behind it. An expert of Qwen3-30B's width takes up to 40 ms,
most of them for new memory, and a prompt uses all experts, so that all are due in the same one: without a rest the
tenth of 256 tokens took 7 s for 0.5, with three layers."""

_DTYPES = (torch.bfloat16, torch.float16)
_DIFFERENT = 256  # rows of a weight in a proof; they come again, and each place has one


def may_pack(weight: torch.Tensor) -> bool:
    """Whether packing the weight could pay and be the same."""
    threads = torch.get_num_threads()
    return is_candidate(weight) and all(
        proves_equal(*weight.shape, rows, weight.dtype, threads) for rows in PROVED_ROWS
    )


class Pace:
    """Lets weights be packed for a part of the time, so that no token waits for all of them."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._rests_until = float("-inf")

    @property
    def is_resting(self) -> bool:
        """Whether nothing may be packed now."""
        return self._clock() < self._rests_until

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """Pack something; what this takes decides how long the rest is."""
        began = self._clock()
        yield
        ended = self._clock()
        self._rests_until = ended + REST * (ended - began)


def is_candidate(weight: torch.Tensor) -> bool:
    """Whether packing the weight could pay."""
    is_fitting = weight.dim() == 2 and weight.dtype in _DTYPES and weight.device.type == "cpu"
    is_large = is_fitting and weight.nbytes >= MIN_BYTES
    return is_large and bool(torch.backends.mkldnn.enabled) and has_kernels(weight.dtype)


@lru_cache(maxsize=len(_DTYPES))
def has_kernels(dtype: torch.dtype) -> bool:
    """Whether this processor and this build of torch multiply packed weights at all."""
    with torch.inference_mode(False), torch.no_grad():
        few = torch.zeros(16, 16, dtype=dtype)
        try:
            multiply(few, pack(few))
        except (RuntimeError, AttributeError, NotImplementedError):
            return False
    return True


@lru_cache(maxsize=4096)
def proves_equal(n: int, k: int, rows: int, dtype: torch.dtype, threads: int) -> bool:
    """Whether a packed [n, k] weight multiplies `rows` rows exactly as the plain one does, on so many threads.

    Proved on products that are nothing but rounding. Kernels choose their order by shape, dtype and threads, never by
    the values.
    """
    try:
        return _multiplies_alike(n, k, rows, dtype)
    finally:
        give_back_freed()  # a proof takes several times the weight's memory


def _multiplies_alike(n: int, k: int, rows: int, dtype: torch.dtype) -> bool:
    with torch.inference_mode(False), torch.no_grad():
        x, w = rounding_only(n, k, rows, dtype)
        try:
            product = multiply(x, pack(w))
            return all(torch.equal(F.linear(given, w).view_as(product), product) for given in (x, x[None]))
        except (RuntimeError, AttributeError, NotImplementedError):  # this build of torch has no such kernels
            return False


def rounding_only(n: int, k: int, rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Make x [rows, k] and w [n, k] of whose product the rounding is all that is left.

    The second half of each sum takes back the first, in another order. What is left shows the order of the additions:
    summed backwards, over 90% of such results differ at a width of 768 or more, and 25% at 48.
    """
    generator = torch.Generator().manual_seed(n * 31 + k)
    half, different = k // 2, min(n, _DIFFERENT)
    w = torch.zeros(different, k, dtype=dtype)
    x = torch.zeros(rows, k, dtype=dtype)
    order = torch.randperm(half, generator=generator)
    w[:, :half] = torch.randn(different, half, generator=generator)
    w[:, half : 2 * half] = -w[:, :half][:, order]
    x[:, :half] = torch.randn(rows, half, generator=generator)
    x[:, half : 2 * half] = x[:, :half][:, order]
    return x, w.repeat(-(-n // different), 1)[:n]


def serves(x: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Whether x [..., k] times a packed weight of this shape [n, k] is what it is times the plain one."""
    n, k = shape
    return (
        x.dtype == dtype
        and x.shape[-1:] == (k,)
        and x.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and proves_equal(n, k, x.numel() // k, dtype, torch.get_num_threads())
    )


class PackedWeight:
    """Stands where a weight [n, k] was, and answers `F.linear`; for anything else it becomes the plain weight again.

    `on_plain` is told when that happens, so that nobody packs such a weight once more.
    """

    def __init__(self, weight: torch.Tensor, on_plain: Callable[[], None]) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self._packed: torch.Tensor | None = pack_to_stay(weight)
        self._weight = weight.new_empty(0)
        self._shape, self._dtype = tuple(weight.shape), weight.dtype
        self._on_plain = on_plain

    def to_dense(self) -> torch.Tensor:
        """A plain copy; packing moves numbers and changes none."""
        with torch.inference_mode(False), torch.no_grad():
            return self._weight if self._packed is None else self._packed.to_dense()

    def plain(self) -> torch.Tensor:
        """Become the plain weight for good."""
        if self._packed is not None:
            self._weight, self._packed = self.to_dense(), None
            self._on_plain()
        return self._weight

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and not kwargs and isinstance(args[0], torch.Tensor):
            x, weight, *bias = args
            if weight._serves(x):
                return multiply(x, weight._packed, bias[0] if bias else None)
        args, kwargs = tree_map_only(PackedWeight, PackedWeight.plain, (args, kwargs))
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain(), name)

    def _serves(self, x: torch.Tensor) -> bool:
        return self._packed is not None and x.dim() == 2 and serves(x, self._shape, self._dtype)


def pack(weight: torch.Tensor) -> torch.Tensor:
    """The weight in the layout that is multiplied fastest."""
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def pack_to_stay(weight: torch.Tensor) -> torch.Tensor:
    """The same in huge pages, where the system has them.

    oneDNN takes its memory in small ones, and then a virtual machine spends more time on finding pages than packing
    saves: with AMX and one row, [1536, 2048] took 0.51 ms packed, 0.45 plain in the huge pages of the page cache, and
    0.38 packed in huge ones, [2048, 768] 0.27, 0.30 and 0.20.
    """
    packed = pack(weight)
    with contextlib.suppress(AttributeError, RuntimeError):  # another release of torch may not tell where it lies
        kernel.collapse(torch.ops.mkldnn.data_ptr(packed), torch.ops.mkldnn._nbytes(packed))
    return packed


def multiply(x: torch.Tensor, packed: Any, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply x [..., k] by a packed weight [n, k]."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return product
