"""Which experts are in memory, in how many slots. Who leaves next is policies.py, reading is reader.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from segmoe.errors import ConfigError
from segmoe.events import Event, ExpertEvicted, ExpertKey, ExpertLoaded
from segmoe.manifest import ALIGNMENT, Piece, Segment
from segmoe.policies import Policy
from segmoe.reader import Reader


@dataclass(slots=True)
class Counters:
    """What residency has cost since the model was loaded."""

    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0
    bytes_read: int = 0

    def since(self, earlier: Counters) -> Counters:
        """The difference to an earlier copy."""
        return Counters(*(getattr(self, name) - getattr(earlier, name) for name in self.__slots__))

    def copy(self) -> Counters:
        """A snapshot."""
        return Counters(*(getattr(self, name) for name in self.__slots__))


@dataclass(slots=True)
class Slot:
    """Memory for one expert; its tensors are views into one buffer and change when the slot is filled anew."""

    buffer: torch.Tensor  # uint8
    nbytes: int
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    last_step: int = 0


class ExpertCache:
    """A bounded number of experts in memory.

    Invariants: never more than `capacity_experts` experts nor `capacity_bytes` bytes of them; a pinned expert stays;
    what `get` returns is valid until the expert is evicted, so a caller pins what it holds across another `get`.
    """

    def __init__(
        self,
        segments: Mapping[ExpertKey, Segment],
        policy: Policy,
        *,
        capacity_experts: int | None = None,
        capacity_bytes: int | None = None,
        emit: Callable[[Event], None] = lambda event: None,
    ) -> None:
        largest = max(segment.nbytes for segment in segments.values())
        if capacity_experts is not None and capacity_experts < 1:
            raise ConfigError(f"a budget of {capacity_experts} experts holds no expert; give at least 1")
        if capacity_bytes is not None and capacity_bytes < largest:
            raise ConfigError(f"a budget of {capacity_bytes:,} bytes holds no expert; give at least {largest:,}")
        self.capacity_experts = capacity_experts
        self.capacity_bytes = capacity_bytes
        self.counters = Counters()
        self.step = 0
        self._segments = segments
        self._policy = policy
        self.emit = emit
        self._reader = Reader()
        self._slots: dict[ExpertKey, Slot] = {}
        self._used_bytes = 0
        self._pins: dict[ExpertKey, int] = {}

    def begin(self, step: int, tokens: int) -> None:
        """A forward pass with so many tokens starts; padding is none."""
        self.step = step
        self._policy.begin(step, tokens)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: ExpertKey) -> bool:
        return key in self._slots

    def get(self, key: ExpertKey) -> Mapping[str, torch.Tensor]:
        """The expert's parameters by name, read from disk if need be; counts one hit or one miss."""
        slot = self._slots.get(key)
        if slot is None:
            self.counters.misses += 1
            slot = self._load(key)
        else:
            self.counters.hits += 1
        slot.last_step = self.step
        self._policy.touch(key)
        return slot.tensors

    def pin(self, key: ExpertKey) -> None:
        """Keep a resident expert until it is unpinned as often as it was pinned."""
        if key not in self._slots:
            raise KeyError(key)
        self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, key: ExpertKey) -> None:
        """Take back one pin."""
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]

    def close(self) -> None:
        """Forget all experts and close the shards."""
        for key in list(self._slots):
            self._policy.forget(key)
        self._slots.clear()
        self._pins.clear()
        self._used_bytes = 0
        self._reader.close()

    def check_integrity(self) -> None:
        """Assert what must always hold; a failure is a bug of ours."""
        assert self.capacity_experts is None or len(self._slots) <= self.capacity_experts
        assert self._used_bytes == sum(slot.nbytes for slot in self._slots.values())
        assert self.capacity_bytes is None or self._used_bytes <= self.capacity_bytes
        assert set(self._pins) <= set(self._slots)
        assert self.counters.loads == self.counters.misses
        assert len(self._slots) == self.counters.loads - self.counters.evictions

    def _load(self, key: ExpertKey) -> Slot:
        began = time.perf_counter_ns()
        segment = self._segments[key]
        slot = self._make_room(segment)
        try:
            _fill(slot, segment, self._reader)
        except BaseException:
            self.counters.misses -= 1  # nothing was delivered; the next try counts
            raise
        self._slots[key] = slot
        self._used_bytes += slot.nbytes
        self.counters.loads += 1
        self.counters.bytes_read += segment.nbytes
        took = time.perf_counter_ns() - began
        self.emit(
            ExpertLoaded(step=self.step, key=key, cause="demand", bytes=segment.nbytes, read_ns=took, waited_ns=took)
        )
        return slot

    def _make_room(self, segment: Segment) -> Slot:
        spare: Slot | None = None
        while self._is_full(segment.nbytes):
            victim = self._policy.victim(self._pins, segment.key)
            if victim is None:
                raise ConfigError(
                    f"all {len(self._slots)} experts in memory are pinned, {segment.key} needs room; raise the budget"
                )
            slot = self._slots.pop(victim.key)
            self._policy.forget(victim.key)
            self._used_bytes -= slot.nbytes
            self.counters.evictions += 1
            self.emit(
                ExpertEvicted(
                    step=self.step,
                    key=victim.key,
                    reason="capacity",
                    idle_steps=self.step - slot.last_step,
                    policy_score=victim.score,
                    trust=victim.trust,
                    next_candidate=victim.next_candidate,
                )
            )
            if slot.nbytes == segment.nbytes:
                spare = slot
        return spare or _new_slot(segment)

    def _is_full(self, wanted: int) -> bool:
        if self.capacity_experts is not None and len(self._slots) >= self.capacity_experts:
            return True
        return self.capacity_bytes is not None and self._used_bytes + wanted > self.capacity_bytes


def _room(nbytes: int) -> int:
    """Bytes that a parameter takes in a slot, whatever its address modulo ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT + ALIGNMENT


def _new_slot(segment: Segment) -> Slot:
    size = sum(_room(part.nbytes) for part in segment.parameters) + ALIGNMENT
    return Slot(buffer=torch.empty(size, dtype=torch.uint8), nbytes=segment.nbytes)


def _fill(slot: Slot, segment: Segment, reader: Reader) -> None:
    view = memoryview(cast(Any, slot.buffer.numpy()))
    start = -slot.buffer.data_ptr() % ALIGNMENT
    slot.tensors = {}
    for part in segment.parameters:
        begin = done = start + part.address
        end = begin + part.nbytes
        tensor = slot.buffer[begin:end].view(part.dtype).view(part.shape)
        if part.recipe is None:
            for piece in part.pieces:
                reader.read(piece, view[done : done + piece.nbytes])
                done += piece.nbytes
        else:
            stored = [_read(piece, reader).view(part.dtype) for piece in part.pieces]
            sources = part.recipe.sources
            tensor.copy_(part.recipe.make([raw.view(s.shape) for raw, s in zip(stored, sources, strict=True)]))
        slot.tensors[part.name] = tensor
        start += _room(part.nbytes)


def _read(piece: Piece, reader: Reader) -> torch.Tensor:
    raw = torch.empty(piece.nbytes, dtype=torch.uint8)
    reader.read(piece, memoryview(cast(Any, raw.numpy())))
    return raw
