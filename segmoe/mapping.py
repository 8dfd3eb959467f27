"""Experts used where they lie in the page cache, not copied. Which may be is decided here, when is cache.py.

Linux maps what a file system caches in large folios in 2 MiB at a time. Measured by tests/benchmarks/mapping.py for
experts of Qwen3-30B's width (9.4 MB, 2 cores): bringing one in that is cached and giving it back takes 0.06 ms, a copy
2 to 2.7. From the disk 6.3 to 13 ms, where a buffered read took 10 to 19: just the 2 MiB that it touches are read, 1.1
to 1.2 times its bytes. With a quarter of the experts in memory that decodes at 1.02 to 1.04 of stock eager's rate where
copies decode at 0.66 to 0.72. And it is in memory once: a copy leaves the page cache's behind. In folios of 4 KiB, as a
file lies there that was just written, a cached expert takes 0.9 to 1.2 ms: what comes back often enough is read again.

A mapped expert is in memory as long as the kernel has room; where it has none beside the budget, what is not cached is
read past the page cache instead (direct.py). What a copy does not know: whoever truncates the file under
a running process ends it by SIGBUS, and whoever rewrites it in place changes the model.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from segmoe import kernel
from segmoe.errors import CheckpointError
from segmoe.events import ExpertKey
from segmoe.kernel import HUGE, advise
from segmoe.manifest import ALIGNMENT, ExpertParameter, Segment
from segmoe.packing import rounding_only
from segmoe.reader import OpenFiles, runs

MIN_BYTES = 1 << 20
"""Smaller experts share their pages with too many neighbours, and a copy costs as little as two calls of the kernel."""

RENEW_AFTER = 8
"""Times that an expert is brought in before it is made sure that it lies in huge pages. Small ones cost 0.9 to 1.2 ms
each time, and to read it again 6 to 7.5: so many more times and that is won back. It is made sure of once more after
twice as many times, and so on: to look alone takes 0.05 ms for 1 MiB."""

GIVE_UP_AFTER = 3
"""Experts in a row that are read again in vain before no other is. One proves nothing: another thread may have been at
its pages meanwhile."""

_PROVED_DTYPES = (torch.bfloat16, torch.float16)
_PROVED_ROWS = (1, 2, 3, 5, 8, 16, 33, 128)


class Mapped(NamedTuple):
    """An expert in mapped files."""

    tensors: dict[str, torch.Tensor]
    stretches: tuple[tuple[Stretch, int], ...]  # and the address of its first page
    around: tuple[tuple[int, int], ...]  # address and bytes of the huge pages that hold them


class Stretch(NamedTuple):
    """Parameters that lie in one piece in a file, and the whole pages around them."""

    file: Path
    begin: int  # offset in the file of the first page
    end: int  # behind the last byte
    parameters: tuple[ExpertParameter, ...]

    @property
    def nbytes(self) -> int:
        """Of the pages."""
        return -(-(self.end - self.begin) // mmap.PAGESIZE) * mmap.PAGESIZE

    def tensors(self, pages: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters by name, in a uint8 tensor that starts with the first page."""
        for part in self.parameters:
            begin = part.pieces[0].offset - self.begin
            yield part.name, pages[begin : begin + part.nbytes].view(part.dtype).view(part.shape)


def may_map(segment: Segment) -> bool:
    """Whether an expert can be used where it lies: whole, of a size that pays, and with the stock model's bits."""
    return kernel.can_map() and segment.nbytes >= MIN_BYTES and all(map(_lies_well, segment.parameters))


def drop(*experts: Mapped) -> None:
    """Take experts' pages out of the process; the kernel may still cache them.

    Huge pages go as a whole: to take part of one, the kernel takes it all and has every core forget it at once.
    Bringing in and dropping took 0.14 ms beside a computing thread, and so 0.06 (tests/benchmarks/mapping.py). What a
    neighbour has in it is found again when it is used.
    """
    kernel.drop([part for mapped in experts for part in mapped.around])


def stretches(segment: Segment) -> Iterator[Stretch]:
    """Where an expert lies that may be mapped."""
    pieces = [part.pieces[0]._replace(nbytes=part.nbytes) for part in segment.parameters]
    for run in runs(pieces):
        (file, begin, _), (_, last, nbytes) = pieces[run[0]], pieces[run[-1]]
        yield Stretch(file, begin & -mmap.PAGESIZE, last + nbytes, tuple(segment.parameters[index] for index in run))


def read_as_used(tensor: torch.Tensor) -> None:
    """Have of a mapped file no more read than the pages of a tensor that somebody looks at; where the kernel can."""
    if kernel.can_map() and kernel.is_of_file(tensor.data_ptr()):
        begin = tensor.data_ptr() & -mmap.PAGESIZE
        advise(begin, tensor.data_ptr() + tensor.nbytes - begin, kernel.RANDOM)


def let_go(tensor: torch.Tensor) -> None:
    """Take the pages of a mapped file that a tensor fills out of the process; whoever looks at it brings them back."""
    if kernel.can_map() and kernel.is_of_file(tensor.data_ptr()):
        begin, end = -(-tensor.data_ptr() // mmap.PAGESIZE), (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE
        advise(begin * mmap.PAGESIZE, max(0, end - begin) * mmap.PAGESIZE, kernel.DONTNEED)


class Mappings:
    """Maps the shards; of their pages those of the experts that were brought in and not dropped.

    Each thread that brings experts maps for itself: the kernel remembers for an open file how far it reads at once, and
    two threads in one file spoil that for each other, so that experts come in small pages.
    """

    def __init__(self, *, renews: bool = True) -> None:
        self.renews = renews
        self._mine = threading.local()
        self._opened = OpenFiles(partial(os.open, flags=os.O_RDONLY | os.O_CLOEXEC))  # to ask of them, not to read
        self._lying: dict[ExpertKey, list[tuple[Path, int, int]]] = {}
        self._brought: Counter[ExpertKey] = Counter()
        self._in_vain = 0

    def bring(self, segment: Segment) -> Mapped:
        """Have an expert's pages in memory and in the process's page table; raise CheckpointError if that fails."""
        mapped = self._find(segment)
        _populate(mapped)
        times = self._brought[segment.key] = self._brought[segment.key] + 1
        if self.renews and times >= RENEW_AFTER and times & (times - 1) == 0:
            self._renew(mapped)
        return mapped

    def is_cached(self, segment: Segment) -> bool:
        """Whether the kernel has all of an expert in its page cache; False where it does not say."""
        for file, begin, nbytes in self._lies(segment):
            if self._cached_pages(file, begin, nbytes) != nbytes // mmap.PAGESIZE:
                return False
        return True

    def _cached_pages(self, file: Path, offset: int, nbytes: int) -> int | None:
        with contextlib.suppress(OSError):  # it may have been deleted since it was mapped
            return kernel.cached_pages(self._opened[file], offset, nbytes)
        return None

    def _lies(self, segment: Segment) -> list[tuple[Path, int, int]]:
        """File, offset and bytes of the pages that hold an expert."""
        if segment.key not in self._lying:
            self._lying[segment.key] = [(part.file, part.begin, part.nbytes) for part in stretches(segment)]
        return self._lying[segment.key]

    def _renew(self, mapped: Mapped) -> None:
        """Have an expert that the kernel cached in small pages read again in large ones.

        In small pages lies what was written lately or read in another way. What another process has mapped stays so.
        """
        read_again = []
        for (stretch, _), (begin, nbytes) in zip(mapped.stretches, mapped.around, strict=True):
            file = self._file(stretch.file).data_ptr()
            for page in kernel.in_small_pages(begin, nbytes) if begin % HUGE == 0 else ():
                advise(page, HUGE, kernel.DONTNEED)
                kernel.forget(stretch.file, page - file, HUGE)
                if not self._cached_pages(stretch.file, page - file, HUGE):
                    read_again.append(page)
        _populate(mapped)
        if read_again:
            is_in_vain = any(kernel.in_small_pages(page, HUGE) for page in read_again)
            self._in_vain = self._in_vain + 1 if is_in_vain else 0
            self.renews = self._in_vain < GIVE_UP_AFTER

    def _find(self, segment: Segment) -> Mapped:
        """Where an expert lies in the calling thread's mappings; in memory or not."""
        if not hasattr(self._mine, "found"):
            self._mine.found, self._mine.files = {}, {}
        found: dict[ExpertKey, Mapped] = self._mine.found
        if segment.key not in found:
            with torch.inference_mode(False), torch.no_grad():
                found[segment.key] = self._locate(segment)
        return found[segment.key]

    def _locate(self, segment: Segment) -> Mapped:
        tensors: dict[str, torch.Tensor] = {}
        places, around = [], []
        for stretch in stretches(segment):
            refuse_short(stretch)
            file = self._file(stretch.file)
            pages = file[stretch.begin :]
            tensors |= dict(stretch.tensors(pages))
            places.append((stretch, pages.data_ptr()))
            around.append(_huge_pages_around(file, pages.data_ptr(), stretch.nbytes))
        return Mapped(tensors, tuple(places), tuple(around))

    def close(self) -> None:
        """Forget the files; each is unmapped with the last tensor in it."""
        self._mine = threading.local()
        self._opened.close()

    def _file(self, path: Path) -> torch.Tensor:
        """A whole file as uint8."""
        files: dict[Path, torch.Tensor] = self._mine.files
        if path not in files:
            files[path] = _map(path)
        return files[path]


def _populate(mapped: Mapped) -> None:
    for stretch, address in mapped.stretches:
        if advise(address, stretch.nbytes, kernel.POPULATE_READ):
            error = ctypes.get_errno()
            refuse_short(stretch)
            raise CheckpointError(f"{stretch.file} cannot be read before byte {stretch.end:,}: {os.strerror(error)}")


def _map(path: Path) -> torch.Tensor:
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(f"{path} cannot be mapped: {error}; load it with mapped=False") from error
    view = torch.frombuffer(_Writable(mapped).bytes, dtype=torch.uint8)
    if not advise(view.data_ptr(), len(view), kernel.HUGEPAGE):  # read 2 MiB where one byte is missing
        advise(view.data_ptr(), len(view), kernel.RANDOM)  # and no more
    return view


def _huge_pages_around(file: torch.Tensor, address: int, nbytes: int) -> tuple[int, int]:
    """Address and bytes of the huge pages that a part of a mapped file lies in, and of nothing beside its mapping."""
    if file.data_ptr() % HUGE:
        return address, nbytes  # it is mapped in small pages
    begin, end = address & -HUGE, -(-(address + nbytes) // HUGE) * HUGE
    return begin, min(end, file.data_ptr() + file.nbytes) - begin


class _Writable:
    """Bytes of a read-only mapping under a type that does not say so: torch would warn of each. Nobody writes there."""

    def __init__(self, mapped: mmap.mmap) -> None:
        address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
        self.bytes = (ctypes.c_uint8 * len(mapped)).from_address(address)
        self.bytes.mapped = mapped  # type: ignore[attr-defined]  # lives as long as what refers to the bytes


def refuse_short(stretch: Stretch) -> None:
    """Raise CheckpointError if the file ends within a stretch, or before."""
    size = stretch.file.stat().st_size
    if size < stretch.end:
        raise CheckpointError(f"{stretch.file} ended {stretch.end - size:,} bytes early; was it replaced?")


def _lies_well(part: ExpertParameter) -> bool:
    """Whether a parameter's bytes are as the model wants them, at an address that gives the stock model's bits."""
    first = part.pieces[0]
    if part.recipe is not None or len(list(runs(part.pieces))) > 1 or list(part.pieces) != sorted(part.pieces):
        return False
    if first.offset % part.dtype.itemsize:
        return False
    if first.offset % ALIGNMENT == part.address:
        return True
    if len(part.shape) != 2 or part.dtype not in _PROVED_DTYPES:  # in fp32 MKL sums in another order
        return False
    ways = (False,) if part.is_linear else (False, True)
    return proves_equal(part.shape, part.dtype, first.offset % ALIGNMENT, part.address, torch.get_num_threads(), ways)


@lru_cache(maxsize=4096)
def proves_equal(
    shape: tuple[int, int],
    dtype: torch.dtype,
    address: int,
    wanted: int,
    threads: int,
    ways: tuple[bool, ...] = (False, True),
) -> bool:
    """Whether a weight at an address modulo ALIGNMENT multiplies as one at the wanted address does, on so many threads.

    Shown on products that are nothing but rounding, for some numbers of rows and each way of multiplying: False is
    `F.linear(x, w)`, True `x @ w`, of which torch's kernels for AVX2 take 7 ms a row in bf16: with it the proof took
    9.7 s for both weights of an expert of Qwen3-30B's width at one address.
    """
    with torch.inference_mode(False), torch.no_grad():
        for rows in _PROVED_ROWS:
            for turned in ways:
                x, w = rounding_only(*(shape[::-1] if turned else shape), rows, dtype)
                here, there = (_at(w.T.contiguous() if turned else w, place) for place in (address, wanted))
                products = [x @ place if turned else F.linear(x, place) for place in (here, there)]
                if not torch.equal(*products):
                    return False
    return True


def _at(weight: torch.Tensor, address: int) -> torch.Tensor:
    buffer = torch.empty(weight.nbytes + 2 * ALIGNMENT, dtype=torch.uint8)
    begin = -buffer.data_ptr() % ALIGNMENT + address
    placed = buffer[begin : begin + weight.nbytes].view(weight.dtype).view(weight.shape)
    return placed.copy_(weight)
