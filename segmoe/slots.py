"""Memory for one expert, on the CPU or a CUDA device, and how its bytes come there. Which expert is cache.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

from segmoe import copying, packing
from segmoe.direct import Direct
from segmoe.errors import ConfigError
from segmoe.events import ExpertKey
from segmoe.manifest import Segment
from segmoe.mapping import Mapped, Mappings, drop, may_map
from segmoe.memory import give_back_freed, huge_pages
from segmoe.packing import Pace, PackedWeight, may_pack
from segmoe.reader import Reader
from segmoe.staging import Staging
from segmoe.together import Together

SURE_AFTER = 32
"""Experts in a row that were cached before the next ones count as cached unasked, until one takes longer."""

FROM_DISK_NS_PER_BYTE = 0.2
"""5 GB/s. To bring in what is cached takes 0.13 at most, in small pages; from a disk of 1 to 2 GB/s 0.7 to 1.4."""

Tensors = Mapping[str, torch.Tensor | PackedWeight]


@dataclass(slots=True, eq=False)
class Slot:
    """An expert in memory; what `tensors` holds is valid until the slot is released."""

    segment: Segment
    buffer: torch.Tensor | None = None  # uint8; None if mapped, and once everything in it was packed
    is_direct: bool = False  # the buffer is for pages of the file, unless those are found in the page cache
    mapped: Mapped | None = None
    tensors: dict[str, Any] = field(default_factory=dict)  # as they are, never changed: a mapped expert's are kept
    loading: Future[int] | _Filled | None = None  # resolves to the nanoseconds that reading took
    begun_bytes: int = 0  # in parts of which reading was begun; whole pages of them
    copied: Any = None  # event behind the copy to the device
    uses: int = 0
    is_as_read: bool = True  # nobody tried to pack it
    last_step: int = 0
    is_guess: bool = False  # read before its layer asked for it

    @property
    def has_begun(self) -> bool:
        """Whether a thread is at it, or was."""
        return self.loading is None or self.loading.running() or self.loading.done()

    @property
    def is_done(self) -> bool:
        """Whether no thread is at it any more."""
        return self.loading is None or self.loading.done()

    @property
    def is_packed(self) -> bool:
        """Whether it has neither a buffer nor a place in a file any more."""
        return self.buffer is None and self.mapped is None and bool(self.tensors)

    @property
    def has_failed(self) -> bool:
        """Whether reading it ended without its bytes; not so while a thread is still at it."""
        return self.loading is not None and self.is_done and self.loading.exception() is not None


class _Filled:
    """A future that was done at once, by who asked for it; one with a lock takes ten times as long to make."""

    __slots__ = ("_error", "_read_ns")

    def __init__(self, read_ns: int, error: BaseException | None = None) -> None:
        self._read_ns, self._error = read_ns, error

    def result(self) -> int:
        if self._error is not None:
            raise self._error
        return self._read_ns

    def exception(self) -> BaseException | None:
        return self._error

    @staticmethod
    def done() -> bool:
        return True

    @staticmethod
    def running() -> bool:
        return False

    @staticmethod
    def cancel() -> bool:
        return False


class ReadTimes(NamedTuple):
    """What one expert took."""

    read_ns: int
    waited_ns: int  # that the calling thread stood still for it


class Slots:
    """Fills and recycles slots. Reads in the calling thread, or with `threads` > 0 in that many of its own.

    Experts are `mapped` where that gives the same bits, else copied; what is mapped and cached already the calling
    thread brings in itself. With `direct`, of those that could be mapped only what the kernel has cached is, and the
    rest is read past its cache. With `staged`, copies go through staging memory on the CPU too, as they do for any
    other device.

    The allocator keeps what packed experts leave, in holes that the next fill. More holes than may be `kept` go back to
    the system: while they did not, a quarter of 12 layers of Qwen3-30B's width, 3.6 GB, took 1.1 GB more and was killed
    in memory that should have held it. And not each at once: half of 3 layers then decoded at 0.93 of its rate.
    """

    def __init__(
        self,
        *,
        threads: int = 0,
        device: torch.device | str = "cpu",
        staged: bool = False,
        mapped: bool = True,
        direct: bool = False,
        pace: Pace | None = None,
    ) -> None:
        if threads < 0:
            raise ConfigError(f"{threads} loader threads cannot read; give 0 or more")
        self.device = torch.device(device)
        self.threads = threads
        self.kept: Callable[[], int] = lambda: 1  # for how many experts to come the memory of those that left is kept
        self._reader = Reader()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="segmoe-loader") if threads else None
        self.spare: list[torch.Tensor] = []
        self._holes = 0  # that packed experts have left in the allocator's memory
        self._staging = Staging(self.device) if staged or self.device.type != "cpu" else None
        self._mappings = Mappings(renews=not direct) if mapped and self._staging is None else None
        self._direct = Direct() if direct and self._mappings is not None else None
        self._reading: list[Future[int]] = []
        self._at_hand = 0  # in a row
        self._mappable: dict[tuple[ExpertKey, int], bool] = {}
        self._packable: dict[tuple[str, tuple[int, ...]], bool] = {}
        self._pace = pace or Pace()

    def start(self, segment: Segment) -> Slot:
        """Begin to read an expert; what fails is raised by `finish`."""
        slot = Slot(segment)
        if self._mappings is None or not self._may_map(segment):
            slot.buffer = self._free(copying.size(segment), self._new)
        elif self._direct and self._direct.may_read(segment):
            slot.buffer, slot.is_direct = self._free(self._direct.room(segment), huge_pages), True
        # the device may still be at work on what was in the buffer: the copy must come behind that
        behind = None if self._staging is None else self._staging.mark()
        if self._executor is None or self._is_at_hand(slot):
            try:
                read_ns = self._fill(slot, behind)
                slot.loading = _Filled(read_ns)
                if read_ns >= FROM_DISK_NS_PER_BYTE * segment.nbytes:
                    self._at_hand = 0
            except BaseException as error:
                slot.loading = _Filled(0, error)
        else:
            loading = slot.loading = self._hand_over(self._executor, slot, behind)
            self._reading = [*self._still_reading(), loading]
        return slot

    def finish(self, slot: Slot) -> ReadTimes:
        """Wait until a slot that was started is filled, and tell how long that took."""
        assert slot.loading is not None
        began_ns = time.perf_counter_ns()
        read_ns = slot.loading.result()
        waited_ns = read_ns if isinstance(slot.loading, _Filled) else time.perf_counter_ns() - began_ns
        slot.loading = None
        if slot.is_direct and slot.mapped is not None:  # its buffer was not needed
            slot.is_direct = False
            self._spare(slot)
        if self._staging is not None:
            self._staging.wait_for(slot.copied)
        return ReadTimes(read_ns, waited_ns)

    def cancel(self, slot: Slot) -> bool:
        """Whether no thread had begun to fill a slot; then none will."""
        return slot.loading is not None and slot.loading.cancel()

    @staticmethod
    def stop(slot: Slot) -> None:
        """Read no more of a slot that threads have begun to fill and nobody wants, where it is read in pieces."""
        if isinstance(slot.loading, Together):
            slot.loading.stop()

    def use(self, slot: Slot) -> Tensors:
        """The parameters of a filled slot by name, for one use."""
        slot.uses += 1
        is_due = slot.is_as_read and slot.uses >= packing.AFTER_USES and not self._pace.is_resting
        if is_due and not self._still_reading():  # a layer that waits for the disk would wait for the packing as well
            with self._pace.work():
                self._pack(slot)
        return slot.tensors

    def release(self, *slots: Slot) -> None:
        """Take back slots; their buffers are kept for the next experts."""
        self._holes += sum(slot.is_packed for slot in slots)
        for slot in slots:
            slot.tensors = {}
        self._give_back(*slots)
        if self._holes and self._holes + len(self.spare) > self.kept():
            give_back_freed()
            self._holes = 0

    def close(self) -> None:
        """End the threads and close the shards; the next read starts them again."""
        if self._executor is not None:
            self._executor.shutdown()
            self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="segmoe-loader")
        self.spare.clear()
        self._reader.close()
        if self._mappings is not None:
            self._mappings.close()
        if self._direct is not None:
            self._direct.close()

    def _may_map(self, segment: Segment) -> bool:
        asked = segment.key, torch.get_num_threads()
        if asked not in self._mappable:
            self._mappable[asked] = may_map(segment)
        return self._mappable[asked]

    def _free(self, nbytes: int, new: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """A kept buffer, or a new one if none is of this size; then it has the place of one that was kept."""
        for place, spare in enumerate(self.spare):
            if len(spare) == nbytes:
                return self.spare.pop(place)
        del self.spare[:1]
        with torch.inference_mode(False):
            return new(nbytes)

    def _new(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def _spare(self, slot: Slot) -> None:
        assert slot.buffer is not None
        self.spare.append(slot.buffer)
        slot.buffer = None
        del self.spare[: -self.kept()]

    def _give_back(self, *slots: Slot) -> None:
        for slot in slots:
            if slot.buffer is not None:
                self._spare(slot)
        mapped = [slot.mapped for slot in slots if slot.mapped is not None]
        if mapped:
            drop(*mapped)
        for slot in slots:
            slot.mapped = None

    def _is_at_hand(self, slot: Slot) -> bool:
        """Whether an expert is mapped and cached: to ask a thread takes longer than to bring it in.

        With a quarter of 3 layers in memory and the rest cached, a decode pass took 0.95 to 1.0 of the time that it
        took where threads brought them (two cores, both computing).
        """
        if slot.buffer is not None or self._mappings is None:
            return False
        if self._at_hand < SURE_AFTER:
            self._at_hand = self._at_hand + 1 if self._mappings.is_cached(slot.segment) else 0
        return self._at_hand > 0

    def _hand_over(self, executor: ThreadPoolExecutor, slot: Slot, behind: Any) -> Future[int]:
        """Have threads fill a slot: one of them, or all side by side where it may be read past the page cache."""
        if slot.is_direct and self.threads > 1:
            return Together(partial(self._jobs, slot, in_pieces=True)).begin(executor, self.threads)
        return executor.submit(self._fill, slot, behind)

    def _fill(self, slot: Slot, behind: Any) -> int:
        began_ns = time.perf_counter_ns()
        if slot.is_direct:
            for job in self._jobs(slot, in_pieces=False):
                job()
        elif slot.buffer is None:
            self._map(slot)
        else:
            slot.begun_bytes = slot.segment.nbytes
            with torch.inference_mode(False), torch.no_grad():
                slot.tensors = self._fill_buffer(slot, slot.buffer, behind)
        return time.perf_counter_ns() - began_ns

    def _jobs(self, slot: Slot, *, in_pieces: bool) -> Iterator[Callable[[], None]]:
        """What is to be done to fill a slot past the page cache, or from it where the kernel has the expert there."""
        assert self._direct is not None and self._mappings is not None and slot.buffer is not None
        if self._mappings.is_cached(slot.segment):
            yield partial(self._map, slot)
            return
        with torch.inference_mode(False), torch.no_grad():
            plan = self._direct.plan(slot.segment, slot.buffer, in_pieces=in_pieces)
        slot.tensors = plan.tensors
        for read in plan.reads:
            slot.begun_bytes += read.nbytes
            yield read.fill

    def _map(self, slot: Slot) -> None:
        assert self._mappings is not None
        slot.begun_bytes = slot.segment.nbytes
        slot.mapped = self._mappings.bring(slot.segment)
        slot.tensors = slot.mapped.tensors

    def _fill_buffer(self, slot: Slot, buffer: torch.Tensor, behind: Any) -> dict[str, torch.Tensor]:
        if self._staging is None:
            copying.read(slot.segment, buffer, self._reader)
        else:
            slot.copied = self._staging.copy(
                lambda staged: copying.read(slot.segment, staged, self._reader), buffer, behind
            )
        return dict(copying.views(slot.segment, buffer))

    def _still_reading(self) -> list[Future[int]]:
        return [loading for loading in self._reading if not loading.done()]

    def _pack(self, slot: Slot) -> None:
        """Put the weights of an expert that stays into the layout that is multiplied fastest."""
        slot.is_as_read = False
        packed: dict[str, PackedWeight] = {}
        for name, tensor in slot.tensors.items():
            kind = (name, tuple(tensor.shape))
            if kind not in self._packable:
                self._packable[kind] = may_pack(tensor)
            if self._packable[kind]:
                packed[name] = PackedWeight(tensor, partial(self._packable.__setitem__, kind, False))
        if packed:
            parts = {part.name: part for part in slot.segment.parameters}
            slot.tensors = {
                name: packed[name] if name in packed else copying.apart(parts[name], tensor)
                for name, tensor in slot.tensors.items()
            }
            self._give_back(slot)
            self._holes = max(0, self._holes - 1)
