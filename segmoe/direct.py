"""Experts read past the page cache, into memory of our own, where memory holds the budget and little more.

What the page cache would keep there, it drops again before it is asked for; until then it takes memory that experts
could have, and a thread's time for each page. Measured by tests/benchmarks/mapping.py for experts of Qwen3-30B's width
(9.4 MB, 2 cores of a virtual machine): 5.0 to 5.5 ms from the disk into huge pages, 6.6 to 8.5 into small ones, for a
request to the disk takes only so many pieces of memory; and 0.3 to 0.4 for the first use. A copy through the cache
takes 11.3 to 12.6 and 0.5, a mapped expert 10.9 to 11.7 and 20 to 21, since its pages are new to the machine.

The bytes lie in memory as they do in the file's pages, so that what was proved for mapped experts holds for these.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

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

THREADS = 4
"""They share the pieces of one expert, then those of the next, so that the disk always has work before it: a missed
expert took .89 to .97 of the time that it takes one thread (decoding, 16 experts to a quarter of 3 and of 12 layers in
memory; a quarter of an expert for each then). Two threads with an expert each took 1.07 to 1.08: they share the disk,
so that each expert comes later."""

PIECE_BYTES = 1 << 20
"""What a thread reads at once where several share an expert: so much later a guess that went wrong is given up. Pieces
of half of it took 1.02 as long, of 1.5 times 1.01."""


def is_due(manifest: Manifest, held_bytes: int) -> bool:
    """Whether memory can never hold the whole checkpoint, but so many bytes of experts and little more.

    Memory of our own cannot be taken back by the kernel as mapped experts can: a budget that does not fit is mapped.
    And where much is left beside it, the page cache is a second budget: with 16 experts of 384 and room for 103, mapped
    ones decoded at 6.0 tokens a second and prefilled at 69, direct ones at 3.7 and 42.
    """
    room = memory_bytes() - OTHERS_BYTES - manifest.other_bytes  # for experts
    return held_bytes <= room < min(held_bytes * MOST_LEFT, manifest.checkpoint.nbytes - manifest.other_bytes)


class Read(NamedTuple):
    """A part of an expert, and what reads it."""

    nbytes: int  # of its pages
    fill: Callable[[], None]


class Plan(NamedTuple):
    """An expert's parameters by name, theirs once all reads are done; and those, in any order or at once."""

    tensors: dict[str, torch.Tensor]
    reads: list[Read]


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

    def plan(self, segment: Segment, buffer: torch.Tensor, *, in_pieces: bool = False) -> Plan:
        """What to do to read an expert into a buffer of its room, at one go or in pieces that threads can share."""
        tensors: dict[str, torch.Tensor] = {}
        reads: list[Read] = []
        begin = -buffer.data_ptr() % mmap.PAGESIZE
        for stretch in stretches(segment):
            pages = buffer[begin : begin + stretch.nbytes]
            view = memoryview(cast(Any, pages.numpy()))
            borders = _borders(stretch.nbytes, stretch.nbytes // PIECE_BYTES if in_pieces else 1)
            reads += (Read(b - a, partial(self._fill, view[a:b], stretch, a)) for a, b in pairwise(borders))
            tensors |= dict(stretch.tensors(pages))
            begin += stretch.nbytes
        return Plan(tensors, reads)

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        self._files.close()

    def _fill(self, into: memoryview, stretch: Stretch, skipped: int) -> None:
        """Read whole pages of a stretch, behind so many bytes of it; the last page of a file may be short."""
        descriptor, begin = self._files[stretch.file], stretch.begin + skipped
        done, wanted = 0, min(len(into), stretch.end - begin)
        while done < wanted:
            try:
                count = os.preadv(descriptor, [into[done:]], begin + done)
            except OSError as error:
                where = begin + done
                raise CheckpointError(f"{stretch.file} cannot be read at byte {where:,}: {error}") from error
            if not count:
                refuse_short(stretch)
                raise CheckpointError(f"{stretch.file} ended early while it was read; was it replaced?")
            done += count


def _borders(nbytes: int, pieces: int) -> list[int]:
    """Where so many pieces of whole pages begin, at most, and where the last one ends.

    >>> [border // mmap.PAGESIZE for border in _borders(5 * mmap.PAGESIZE, 2)]
    [0, 3, 5]
    """
    size = -(-nbytes // (max(1, pieces) * mmap.PAGESIZE)) * mmap.PAGESIZE
    return [*range(0, nbytes, size), nbytes]


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
