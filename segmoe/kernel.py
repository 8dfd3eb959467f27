"""What Linux is asked about mapped files and memory: to read, to forget, to use huge pages, and what it holds."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

HUGE = 2 << 20  # bytes of the largest page that a file is cached and mapped in

RANDOM, DONTNEED, HUGEPAGE, POPULATE_READ, COLLAPSE = 1, 4, 14, 22, 25  # advice, of Linux's <mman.h>

FIRST_LINUX = (5, 18)
"""Earlier ones read a mapping that is marked as random page by page."""

_CACHESTAT = 451  # of Linux's <unistd.h>
_Range, _CacheStat = ctypes.c_uint64 * 2, ctypes.c_uint64 * 5  # of its <mman.h>; the first told is pages cached
_PROCESS_MADVISE, _SELF = 440, -10000  # of <unistd.h> and <pidfd.h>: this process
_PAGEMAP_SCAN = 0xC0606610  # of Linux's <fs.h>, since 6.7
_IS_PRESENT, _IS_HUGE = 1 << 3, 1 << 6


class _Region(ctypes.Structure):
    _fields_ = (("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("categories", ctypes.c_uint64))


class _Part(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("nbytes", ctypes.c_size_t))


class _Scan(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages"),
            *("category_inverted", "category_mask", "category_anyof_mask", "return_mask"),
        )
    )


def advise(address: int, nbytes: int, advice: int) -> int:
    """The kernel's answer to madvise; 0 if it did so."""
    result: int = _libc().madvise(address, nbytes, advice)
    return result


def drop(parts: Sequence[tuple[int, int]]) -> None:
    """Take pages, by address and bytes, out of the process: in one call, of which Linux tells the other cores once.

    An older Linux takes no such call for a process's own pages; then it is one call for each part.
    """
    if len(parts) > 1:
        vector = (_Part * len(parts))(*itertools.starmap(_Part, parts))
        told = _process_madvise()(_PROCESS_MADVISE, _SELF, vector, len(parts), DONTNEED, 0)
        if told == sum(nbytes for _, nbytes in parts):
            return
    for address, nbytes in parts:
        advise(address, nbytes, DONTNEED)


def collapse(address: int, nbytes: int) -> None:
    """Have memory of this process lie in huge pages, and what is beside it in the first and last; Linux can since 6.1.

    The numbers in it stay what they are. Without a huge page to be had, or on another system, nothing happens.
    """
    if sys.platform == "linux":
        begin, end = address & -HUGE, -(-(address + nbytes) // HUGE) * HUGE
        advise(begin, end - begin, COLLAPSE)  # beyond a mapping's ends it does what it can, and says that it cannot


def is_of_file(address: int) -> bool:
    """Whether a file is mapped at an address: then its clean pages can be dropped, and are read again if need be."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, _, _, _, inode, *_ = line.split(maxsplit=5)
            begin, end = (int(number, 16) for number in span.split("-"))
            if begin <= address < end:
                return inode != "0"
    return False


def forget(file: Path, offset: int, nbytes: int) -> None:
    """Have the kernel drop a part of a file from its page cache, but for pages that a process has mapped."""
    with contextlib.suppress(OSError), file.open("rb") as opened:  # it may have been deleted since it was mapped
        os.posix_fadvise(opened.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)


def cached_pages(descriptor: int, offset: int, nbytes: int) -> int | None:
    """How many pages of a part of an open file the kernel has in memory; None where it does not say.

    Linux says so since 6.5, and lately only to who owns the file or may write to it. `mincore` tells anybody else that
    all pages are in memory, and takes 15 to 25 microseconds for one of each 2 MiB of an expert, where this takes 3.
    """
    part, told = _Range(offset, nbytes), _CacheStat()
    return None if _libc().syscall(_CACHESTAT, descriptor, part, told, 0) else told[0]


def in_small_pages(address: int, nbytes: int) -> list[int]:
    """Addresses of the whole huge pages, from `address` on, of which a part is in the page table in smaller pages.

    An empty list where the kernel does not say.
    """
    found: set[int] = set()
    end, regions = address + nbytes // HUGE * HUGE, (_Region * 64)()
    with contextlib.suppress(OSError), Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        while address < end:
            scan = _Scan(size=ctypes.sizeof(_Scan), start=address, end=end, vec=ctypes.addressof(regions))
            scan.vec_len, scan.return_mask = len(regions), _IS_PRESENT
            scan.category_mask, scan.category_inverted = _IS_PRESENT | _IS_HUGE, _IS_HUGE
            count = _libc().ioctl(pagemap.fileno(), ctypes.c_ulong(_PAGEMAP_SCAN), ctypes.byref(scan))
            if count < 0:
                break
            for region in regions[:count]:
                found.update(range(region.start & -HUGE, region.end, HUGE))
            address = scan.walk_end
    return sorted(found)


@lru_cache(maxsize=1)
def can_map() -> bool:
    """Whether this is a Linux that maps files as is wanted here."""
    if sys.platform != "linux":
        return False
    major, minor = os.uname().release.split(".")[:2]
    if (int(major), int("".join(itertools.takewhile(str.isdigit, minor)) or 0)) < FIRST_LINUX:
        return False
    page = mmap.mmap(-1, mmap.PAGESIZE)  # a sandbox may say that it is such a kernel and not know the call
    return not advise(ctypes.addressof(ctypes.c_char.from_buffer(page)), mmap.PAGESIZE, POPULATE_READ)


@lru_cache(maxsize=1)
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)  # which lets other threads run meanwhile; mmap.madvise does not
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.syscall.argtypes = (ctypes.c_long, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)
    libc.syscall.restype = ctypes.c_long
    return libc


@lru_cache(maxsize=1)
def _process_madvise() -> Any:
    call = _libc()["syscall"]  # another object than its attribute; by number, as the C library may be an older one
    call.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint)
    call.restype = ctypes.c_long
    return call
