"""Experts read past the page cache, into memory of our own, where memory holds the budget and little more.

What the page cache would keep there, it drops again before it is asked for; until then it takes memory that experts
could have, and a thread's time for each page. Measured by tests/benchmarks/mapping.py for experts of Qwen3-30B's width
(9.4 MB, 2 cores of a virtual machine): 5.0 to 5.5 ms from the disk into huge pages, 6.6 to 8.5 into small ones, for a
request to the disk takes only so many pieces of memory; and 0.3 to 0.4 for the first use. A copy through the cache
takes 11.3 to 12.6 and 0.5, a mapped expert 10.9 to 11.7 and 20 to 21, since its pages are new to the machine.

The bytes lie in memory as they do in the file's pages, so that what was proved for mapped experts holds for these.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path
from typing import Any, cast

import torch

from segmoe.errors import CheckpointError
from segmoe.manifest import Manifest, Segment
from segmoe.mapping import Stretch, refuse_short, stretches
from segmoe.memory import memory_bytes
from segmoe.reader import OpenFiles

OTHERS_BYTES = 700 << 20
"""What Python, torch and transformers take beside weights, with room for activations and for pages being read."""

MOST_LEFT = 1.25
"""Where memory holds more than this times the budget, what is left is worth more as page cache; chosen between what was
measured: at 1.0 reading past it won, at 6.4 it lost."""

THREADS = 1
"""Decoding took 1.00 to 1.04 times as long with two: they share the disk, so that each expert comes later."""

_HUGE = 2 << 20


def is_due(manifest: Manifest, held_bytes: int) -> bool:
    """Whether memory can never hold the whole checkpoint, but so many bytes of experts and little more.

    Memory of our own cannot be taken back by the kernel as mapped experts can: a budget that does not fit is mapped.
    And where much is left beside it, the page cache is a second budget: with 16 experts of 384 and room for 103, mapped
    ones decoded at 6.0 tokens a second and prefilled at 69, direct ones at 3.7 and 42.
    """
    room = memory_bytes() - OTHERS_BYTES - manifest.other_bytes  # for experts
    return held_bytes <= room < min(held_bytes * MOST_LEFT, manifest.checkpoint.nbytes - manifest.other_bytes)


class Direct:
    """Reads experts that may be mapped; several threads may use it."""

    def __init__(self) -> None:
        self._files = OpenFiles(_open)

    def may_read(self, segment: Segment) -> bool:
        """Whether its file system reads past the page cache; some cannot."""
        return all(self._files[part.pieces[0].file] >= 0 for part in segment.parameters)

    @staticmethod
    def room(segment: Segment) -> int:
        """Bytes of a buffer for an expert, wherever in a page it begins."""
        return sum(part.nbytes + 2 * mmap.PAGESIZE for part in segment.parameters)

    def read(self, segment: Segment, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Read an expert into a buffer of its room; its parameters by name, or CheckpointError."""
        tensors: dict[str, torch.Tensor] = {}
        begin = -buffer.data_ptr() % mmap.PAGESIZE
        for stretch in stretches(segment):
            pages = buffer[begin : begin + stretch.nbytes]
            self._fill(pages, stretch)
            tensors |= dict(stretch.tensors(pages))
            begin += stretch.nbytes
        return tensors

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        self._files.close()

    def _fill(self, pages: torch.Tensor, stretch: Stretch) -> None:
        descriptor = self._files[stretch.file]
        into, done = memoryview(cast(Any, pages.numpy())), 0
        while done < stretch.end - stretch.begin:  # the last page of a file may be short
            try:
                count = os.preadv(descriptor, [into[done:]], stretch.begin + done)
            except OSError as error:
                where = stretch.begin + done
                raise CheckpointError(f"{stretch.file} cannot be read at byte {where:,}: {error}") from error
            if not count:
                refuse_short(stretch)
                raise CheckpointError(f"{stretch.file} ended early while it was read; was it replaced?")
            done += count


def huge_pages(nbytes: int) -> torch.Tensor:
    """Memory of our own, uint8, in huge pages as far as they are full and the kernel has them."""
    pages = mmap.mmap(-1, nbytes + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer = torch.frombuffer(pages, dtype=torch.uint8)
    begin = -buffer.data_ptr() % _HUGE
    with contextlib.suppress(OSError, AttributeError):  # a kernel without them, or not Linux
        pages.madvise(mmap.MADV_HUGEPAGE, begin, nbytes // _HUGE * _HUGE)
    return buffer[begin : begin + nbytes]


def _open(file: Path) -> int:
    """A descriptor that reads past the page cache, tried on the first page; -1 where there is none."""
    descriptor = -1
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        os.preadv(descriptor, [mmap.mmap(-1, mmap.PAGESIZE)], 0)
    except OSError:
        if descriptor >= 0:
            os.close(descriptor)
        return -1
    return descriptor
