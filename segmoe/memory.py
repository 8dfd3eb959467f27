"""How much memory this process may have, and how much of it experts may take. What it is used for is slots.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

EARLY_LEAST = 2
"""Experts read early, beside a budget: one that comes from the disk, and one that waits for it."""

EARLY_SHARE = 0.04
"""Of the budget, where that is more: what a large one reads while attention computes."""

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


def most_early(budget_experts: int | None, threads: int) -> int:
    """Experts that may be in memory beside a budget of so many."""
    if not threads:
        return 0
    return EARLY_LEAST if budget_experts is None else max(EARLY_LEAST, int(budget_experts * EARLY_SHARE))


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
