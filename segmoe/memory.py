"""How much memory this process may have and experts may take; taking it in huge pages, and giving it back.

Whose it is: slots.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from pathlib import Path

import torch

from segmoe.kernel import HUGE

EARLY_SHARE = 0.04
"""Of the budget and the other weights together: what threads may hold of experts that they read early. With 0.03 a
decode pass from a cold disk took 1.006 [.997, 1.015] and 1.011 [1.001, 1.022] of the time (a quarter of 3 and of 12
layers of Qwen3-30B's width in memory)."""

_TOLD = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def memory_bytes() -> int:
    """The machine's memory, or the least of the caps that control groups (version 1 or 2) put around this process.

    Where the system does not say, more than any checkpoint takes.
    """
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        machine = sys.maxsize
    return min([machine, *_caps()])


def most_early(budget_bytes: int, other_bytes: int, expert_bytes: int) -> int:
    """Experts that threads may hold beside a budget: one at least, which is read while the one before is computed."""
    return max(1, int((budget_bytes + other_bytes) * EARLY_SHARE / expert_bytes))


def huge_pages(nbytes: int) -> torch.Tensor:
    """Memory of our own, uint8, in huge pages as far as they are full and the kernel has them."""
    pages = mmap.mmap(-1, nbytes + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    buffer = torch.frombuffer(pages, dtype=torch.uint8)
    begin = -buffer.data_ptr() % HUGE
    with contextlib.suppress(OSError, AttributeError):  # a kernel without them, or not Linux
        pages.madvise(mmap.MADV_HUGEPAGE, begin, nbytes // HUGE * HUGE)
    return buffer[begin : begin + nbytes]


def give_back_freed() -> None:
    """Give what was freed between things that are still held back to the system, where the C library can (glibc)."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # CDLL(None) is a TypeError on Windows
        ctypes.CDLL(None).malloc_trim(0)


def _caps() -> list[int]:
    found = []
    for line in _TOLD.read_text().splitlines() if _TOLD.exists() else []:
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (_GROUPS / "memory", "memory.limit_in_bytes") if controllers else (_GROUPS, "memory.max")
        inner = Path(own.lstrip("/"))
        for group in (inner, *inner.parents):  # a container may see itself as the root, by another path
            limit = root / group / name
            if limit.is_file() and (text := limit.read_text().strip()).isdecimal():  # "max" is no cap
                found.append(int(text))
    return found
