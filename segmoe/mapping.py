"""Experts used where they lie in the page cache, not copied. Which may be is decided here, when is cache.py.

Linux maps what a file system caches in large folios in 2 MiB at a time. Measured by tests/benchmarks/mapping.py for
experts of Qwen3-30B's width (9.4 MB, 2 cores): bringing one in that is cached and giving it back takes 0.04 ms, a copy
2 to 2.7; with folios of 4 KiB it took 0.7. From the disk 10.4 to 13 ms, where a buffered read took 13 to 19: just the
2 MiB that it touches are read, 1.1 to 1.2 times its bytes. With a quarter of the experts in memory that decodes at 1.07
of stock eager's rate where copies decode at 0.61. And it is in memory once: a copy leaves the page cache's behind.

A mapped expert is in memory as long as the kernel has room. What a copy does not know: whoever truncates the file under
a running process ends it by SIGBUS, and whoever rewrites it in place changes the model.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import sys
import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from segmoe.errors import CheckpointError
from segmoe.manifest import ALIGNMENT, ExpertParameter, Segment
from segmoe.packing import rounding_only
from segmoe.reader import runs

MIN_BYTES = 1 << 20
"""Smaller experts share their pages with too many neighbours, and a copy costs as little as two calls of the kernel."""

FIRST_LINUX = (5, 18)
"""Earlier ones read a mapping that is marked as random page by page."""

_PROVED_DTYPES = (torch.bfloat16, torch.float16)
_PROVED_ROWS = (1, 2, 3, 5, 8, 16, 33, 128)

_MADV_RANDOM, _MADV_DONTNEED, _MADV_HUGEPAGE, _MADV_POPULATE_READ = 1, 4, 14, 22  # of Linux's <mman.h>


class Mapped(NamedTuple):
    """An expert in mapped files."""

    tensors: dict[str, torch.Tensor]
    stretches: tuple[_Stretch, ...]


class _Stretch(NamedTuple):
    """Bytes of a file in one piece, and the whole pages around them."""

    file: Path
    end: int  # offset in the file behind the last byte
    address: int
    nbytes: int


def may_map(segment: Segment) -> bool:
    """Whether an expert can be used where it lies: whole, of a size that pays, and with the stock model's bits."""
    return _can_map() and segment.nbytes >= MIN_BYTES and all(map(_lies_well, segment.parameters))


def drop(mapped: Mapped) -> None:
    """Take an expert's pages out of the process; the kernel may still cache them."""
    for stretch in mapped.stretches:
        _advise(stretch.address, stretch.nbytes, _MADV_DONTNEED)


class Mappings:
    """Maps the shards; of their pages those of the experts that were brought in and not dropped.

    Each thread that brings experts maps for itself: the kernel remembers for an open file how far it reads at once, and
    two threads in one file spoil that for each other, so that experts come in small pages.
    """

    def __init__(self) -> None:
        self._mine = threading.local()

    def bring(self, segment: Segment) -> Mapped:
        """Have an expert's pages in memory and in the process's page table; raise CheckpointError if that fails."""
        if not hasattr(self._mine, "found"):
            self._mine.found, self._mine.files = {}, {}
        mapped: Mapped | None = self._mine.found.get(segment.key)
        if mapped is None:
            mapped = self._mine.found[segment.key] = self._find(segment)
        for file, end, address, nbytes in mapped.stretches:
            if _advise(address, nbytes, _MADV_POPULATE_READ):
                error = ctypes.get_errno()
                _refuse_short(file, end)
                raise CheckpointError(f"{file} cannot be read before byte {end:,}: {os.strerror(error)}")
        return mapped

    def _find(self, segment: Segment) -> Mapped:
        pieces = [piece for part in segment.parameters for piece in part.pieces]
        stretches = []
        for run in runs(pieces):
            (file, begin, _), last = pieces[run[0]], pieces[run[-1]]
            end = last.offset + last.nbytes
            _refuse_short(file, end)
            base = self._file(file).data_ptr()
            address = base + begin & -mmap.PAGESIZE
            nbytes = -(-(base + end - address) // mmap.PAGESIZE) * mmap.PAGESIZE
            stretches.append(_Stretch(file, end, address, nbytes))
        tensors = {}
        for part in segment.parameters:
            begin = part.pieces[0].offset
            raw = self._file(part.pieces[0].file)[begin : begin + part.nbytes]
            tensors[part.name] = raw.view(part.dtype).view(part.shape)
        return Mapped(tensors, tuple(stretches))

    def close(self) -> None:
        """Forget the files; each is unmapped with the last tensor in it."""
        self._mine = threading.local()

    def _file(self, path: Path) -> torch.Tensor:
        """A whole file as uint8."""
        files: dict[Path, torch.Tensor] = self._mine.files
        if path not in files:
            files[path] = _map(path)
        return files[path]


def _map(path: Path) -> torch.Tensor:
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(f"{path} cannot be mapped: {error}; load it with mapped=False") from error
    view = torch.frombuffer(_Writable(mapped).bytes, dtype=torch.uint8)
    if not _advise(view.data_ptr(), len(view), _MADV_HUGEPAGE):  # read 2 MiB where one byte is missing
        _advise(view.data_ptr(), len(view), _MADV_RANDOM)  # and no more
    return view


class _Writable:
    """Bytes of a read-only mapping under a type that does not say so: torch would warn of each. Nobody writes there."""

    def __init__(self, mapped: mmap.mmap) -> None:
        address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
        self.bytes = (ctypes.c_uint8 * len(mapped)).from_address(address)
        self.bytes.mapped = mapped  # type: ignore[attr-defined]  # lives as long as what refers to the bytes


def _refuse_short(file: Path, end: int) -> None:
    size = file.stat().st_size
    if size < end:
        raise CheckpointError(f"{file} ended {end - size:,} bytes early; was it replaced?")


@lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)  # which lets other threads run meanwhile; mmap.madvise does not
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc


def _advise(address: int, nbytes: int, advice: int) -> int:
    result: int = _libc().madvise(address, nbytes, advice)
    return result


@lru_cache(maxsize=1)
def _can_map() -> bool:
    if sys.platform != "linux":
        return False
    major, minor = os.uname().release.split(".")[:2]
    if (int(major), int("".join(itertools.takewhile(str.isdigit, minor)) or 0)) < FIRST_LINUX:
        return False
    page = mmap.mmap(-1, mmap.PAGESIZE)  # a sandbox may say that it is such a kernel and not know the call
    return not _advise(ctypes.addressof(ctypes.c_char.from_buffer(page)), mmap.PAGESIZE, _MADV_POPULATE_READ)


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
    return proves_equal(part.shape, part.dtype, first.offset % ALIGNMENT, part.address, torch.get_num_threads())


@lru_cache(maxsize=4096)
def proves_equal(shape: tuple[int, int], dtype: torch.dtype, address: int, wanted: int, threads: int) -> bool:
    """Whether a weight at an address modulo ALIGNMENT multiplies as one at the wanted address does, on so many threads.

    Shown on products that are nothing but rounding, for some numbers of rows and for both ways of multiplying, `x @ w`
    and `x @ w.T`.
    """
    with torch.inference_mode(False), torch.no_grad():
        for rows in _PROVED_ROWS:
            for turned in (False, True):
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
