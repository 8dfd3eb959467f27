"""Synthetic access traces, and the file form that libCacheSim reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from observer.replay.belady import NEVER, next_uses
from observer.replay.trace import Trace
from segmoe.events import ExpertKey


def of_accesses(expert: NDArray[np.integer], count: int | None = None) -> Trace:
    """One access a pass, as caches of web objects see it; one layer, one byte each."""
    expert = np.asarray(expert)
    count = int(expert.max()) + 1 if count is None else count
    return Trace(
        expert=expert.astype(np.int32),
        pass_index=np.arange(len(expert), dtype=np.int32),
        tokens=np.ones(len(expert), np.int64),
        is_decode=np.ones(len(expert), np.bool_),
        keys=[ExpertKey("model", 0, number) for number in range(count)],
        nbytes=np.ones(count, np.int64),
    )


def zipf(accesses: int, objects: int, *, alpha: float = 1.0, seed: int = 0) -> NDArray[np.int64]:
    """Independent draws of which the r-th most popular object has a chance of r^-alpha."""
    share = np.cumsum(np.arange(1, objects + 1) ** -alpha)
    rng = np.random.default_rng(seed)
    return rng.permutation(objects)[np.searchsorted(share, rng.random(accesses) * share[-1])]


def loops(accesses: int, objects: int) -> NDArray[np.int64]:
    """The same round again and again: the worst that LRU can meet, and what a model does to its layers."""
    return np.arange(accesses) % objects


def drifting(accesses: int, objects: int, seed: int = 0) -> NDArray[np.int64]:
    """A popular neighbourhood that moves."""
    rng = np.random.default_rng(seed)
    return (np.arange(accesses) // 50 + rng.geometric(0.05, accesses)) % objects


def write_oracle(trace: Trace, path: Path) -> Path:
    """libCacheSim's oracleGeneral form: time, object, size, index of the next access or -1."""
    following = next_uses(trace)
    rows = np.zeros(len(trace), np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")]))
    rows["time"], rows["object"], rows["size"] = np.arange(len(trace)), trace.expert + 1, 1
    rows["next"] = np.where(following == NEVER, -1, following + 1)  # it counts from 1
    path.write_bytes(rows.tobytes())
    return path
