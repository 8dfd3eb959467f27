"""What bringing one expert into memory costs: mapped, copied, past the page cache, and by a read as it comes.

    python -m tests.benchmarks.mapping FOLDER [--experts 60]

FOLDER is written by wide.py if it is not there. The same random experts one after the other, in the calling thread:
cold, after the kernel forgot the file; used twice, of which the first is slow where a virtual machine gives free memory
back to its host (free page reporting) and gets it anew page by page; brought and given back again while cached; and
the same once more while another thread of the process computes, as a layer does. Last, what mapping takes where the
file was read page by page, so that the kernel has it in small pages.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import click
import torch
from rich.console import Console
from rich.table import Table

from segmoe.building import read_config
from segmoe.checkpoint import open_checkpoint
from segmoe.locating import build_manifest
from segmoe.manifest import Segment
from segmoe.memory import huge_pages
from segmoe.slots import Slot, Slots
from tests.benchmarks import wide
from tests.benchmarks.memory import drop_cached


def disk_bytes() -> int:
    """Bytes that this process had read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def use(slot: Slot) -> None:
    """Read every byte of an expert once."""
    for tensor in slot.tensors.values():
        tensor.view(torch.int64).sum()


def small_pages(nbytes: int) -> torch.Tensor:
    """Memory that the kernel gives page by page."""
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def milliseconds(call: Callable[[], None]) -> float:
    """The time of one call."""
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


@contextlib.contextmanager
def computing() -> Iterator[None]:
    """Another thread multiplies meanwhile, on one core."""
    done, small = threading.Event(), torch.ones(64, 64)

    def multiply() -> None:
        while not done.is_set():
            torch.mm(small, small)

    thread = threading.Thread(target=multiply)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def through(slots: Slots, segments: list[Segment], files: list[Path]) -> list[str]:
    """Bring the experts in by these slots; medians in milliseconds."""
    held: list[Slot] = []

    def bring(segment: Segment) -> None:
        held.append(slots.start(segment))
        slots.finish(held[-1])

    bring(segments[0])  # maps or opens the file, proves what there is to be proved
    slots.release(held.pop())
    drop_cached(files)
    cold, first, second = [], [], []
    before = disk_bytes()
    for segment in segments[1:]:
        cold.append(milliseconds(lambda segment=segment: bring(segment)))
        for uses in (first, second):
            uses.append(milliseconds(lambda: use(held[-1])))
        slots.release(held.pop())
    read = (disk_bytes() - before) / sum(segment.nbytes for segment in segments[1:])
    times = [f"{statistics.median(found):.2f}" for found in (cold, first, second)]
    return [*times, *cached(slots, segments), f"{read:.2f}"]


def cached(slots: Slots, segments: list[Segment]) -> list[str]:
    """Bring in and give back what the kernel has; medians in milliseconds, alone and beside a thread that computes."""

    def bring(segment: Segment) -> None:
        slot = slots.start(segment)
        slots.finish(slot)
        slots.release(slot)

    found = []
    for beside in (contextlib.nullcontext(), computing()):
        with beside:
            found.append([milliseconds(lambda segment=segment: bring(segment)) for segment in segments[1:]])
    slots.close()
    return [f"{statistics.median(times):.2f}" for times in found]


def buffered(segments: list[Segment], files: list[Path]) -> list[str]:
    """Read the same bytes from a file that nobody advised the kernel about."""
    drop_cached(files)
    buffer = bytearray(max(segment.nbytes for segment in segments))
    descriptors = {file: os.open(file, os.O_RDONLY) for file in files}

    def read(segment: Segment) -> None:
        for part in segment.parameters:
            for file, offset, nbytes in part.pieces:
                os.preadv(descriptors[file], [memoryview(buffer)[:nbytes]], offset)

    before = disk_bytes()
    cold = [milliseconds(lambda segment=segment: read(segment)) for segment in segments[1:]]
    share = (disk_bytes() - before) / sum(segment.nbytes for segment in segments[1:])
    again = [milliseconds(lambda segment=segment: read(segment)) for segment in segments[1:]]
    for descriptor in descriptors.values():
        os.close(descriptor)
    return [f"{statistics.median(cold):.2f}", "-", "-", f"{statistics.median(again):.2f}", "-", f"{share:.2f}"]


def in_small_pages(files: list[Path]) -> None:
    """Have the kernel cache the files page by page."""
    drop_cached(files)
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for offset in range(0, file.stat().st_size, mmap.PAGESIZE):
            os.pread(descriptor, 1, offset)
        os.close(descriptor)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--experts", default=60, show_default=True, help="How many are brought in.")
def main(folder: Path, experts: int) -> None:
    """Compare the ways in which an expert comes into memory."""
    wide.write(folder, wide.config(wide.LAYERS))
    checkpoint = open_checkpoint(folder)
    found = list(build_manifest(checkpoint, read_config(checkpoint.folder)).experts.values())
    chosen = random.Random(0).sample(found, min(experts + 1, len(found)))
    files = sorted({piece.file for segment in found for part in segment.parameters for piece in part.pieces})
    table = Table(
        "way", "cold", "first use", "second use", "cached", "and computing", "read from disk, times its bytes"
    )
    table.add_row("buffered read", *buffered(chosen, files))
    ways = (
        ("copied", Slots(mapped=False), huge_pages),
        ("mapped", Slots(), huge_pages),
        ("past the page cache", Slots(direct=True), huge_pages),
        ("and into small pages", Slots(direct=True), small_pages),
    )
    for name, slots, pages in ways:
        drop_cached(files)
        with mock.patch("segmoe.slots.huge_pages", pages):
            table.add_row(name, *through(slots, chosen, files))
    in_small_pages(files)
    table.add_row("mapped, cached in small pages", "-", "-", "-", *cached(Slots(), chosen), "-")
    Console().print(
        f"Median milliseconds of {len(chosen) - 1} experts of {chosen[0].nbytes / 1e6:.1f} MB", table, sep="\n"
    )


if __name__ == "__main__":
    main()
