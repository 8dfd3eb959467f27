"""Experts beside the budget: read by threads before the cache has decided on them, or not computed before they left.

Three kinds: who was expected and for whom nobody has left yet, who the next layer is likely to ask for, and who has
left for another of the same layer, as what was just brought in often does. The decisions stay what they are without
threads; who was read for nothing is told.

What has left stays until it is computed, so that a layer is decided on at once: one by one, between products that drive
this code out of the processor's caches, a missed expert of Qwen3-30B's width that is mapped took 150 microseconds
for 120. And all being there, a token's experts are computed side by side (eager_loop.py). Both together: decoding at
1.04 to 1.08 of stock's rate for 1.01, with AVX2's kernels at .98 for .96 (a quarter of three layers in memory, all
files cached).

What is mapped and not needed any more stays until others need its place, beyond its layer: each call that takes pages
out of the process has every core forget them, 40 microseconds for two experts and 53 for four. So there are 4 such
calls a pass in place of 8, and they take 226 microseconds for 314 (AVX2's kernels, same setting).

What nobody wants any more is given up within, where it is read in pieces (direct.py): with those of 1 MiB for quarters
of an expert that were always read to their end, a decode pass from a cold disk took .966 [.955, .977] and .985 [.975,
.995] of the time (a quarter of 12 layers of Qwen3-30B's width, passes of both in turn, set right for what each missed).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Container, Mapping

from segmoe.events import ExpertKey
from segmoe.manifest import Segment
from segmoe.slots import Slot, Slots


class Early:
    """At most so many experts that are being read, or were, and are not decided on yet; or are `leaving`.

    `wasted` is called with each that was read and never asked for, and the nanoseconds that reading it took.
    """

    def __init__(
        self, slots: Slots, segments: Mapping[ExpertKey, Segment], most: int, wasted: Callable[[Slot, int], None]
    ) -> None:
        self.most = most
        self._slots, self._segments, self._wasted = slots, segments, wasted
        self._wanted: dict[ExpertKey, Slot] = {}
        self._unwanted: list[Slot] = []  # a thread is still at them
        self.leaving: dict[ExpertKey, Slot] = {}

    def __len__(self) -> int:
        return len(self._wanted) + len(self._unwanted) + len(self.leaving)

    @property
    def has_room(self) -> bool:
        """Whether one more can be held."""
        return len(self) < self.most

    @property
    def is_busy(self) -> bool:
        """Whether there is any such expert."""
        return bool(self._wanted or self._unwanted)

    @property
    def buffers(self) -> int:
        """How many of them have memory of their own; mapped ones are the kernel's."""
        return sum(
            slot.buffer is not None for slot in (*self._wanted.values(), *self._unwanted, *self.leaving.values())
        )

    def __contains__(self, key: ExpertKey) -> bool:
        return key in self._wanted

    def read(self, keys: Collection[ExpertKey], resident: Container[ExpertKey], *, is_guess: bool = False) -> None:
        """Begin to read the first of them that are not in memory, as many as there is room for."""
        if not keys:
            return
        self._clear(only_done=True)
        for key in keys:
            if not self.has_room:
                return
            if key not in resident and key not in self._wanted:
                slot = self._wanted[key] = self._slots.start(self._segments[key])
                slot.is_guess = is_guess

    def take(self, key: ExpertKey) -> Slot | None:
        """Hand over an expert that the cache has decided on, if it is here."""
        if key in self.leaving:  # else its pages would go when it is back
            self._slots.release(self.leaving.pop(key))
        return self._wanted.pop(key, None)

    def leave(self, slot: Slot, needed: Collection[Slot]) -> None:
        """Hold an expert that leaves the budget until its place is needed, and it is not."""
        self.leaving[slot.segment.key] = slot
        if len(self) > self.most:
            self.let_go(needed)

    def keep(self, coming: Container[ExpertKey]) -> None:
        """Give up all others. Memory that threads have begun to fill is free once they are done; nobody waits for it.

        What is kept was prefetched if reading it had begun.
        """
        for key, slot in list(self._wanted.items()):
            if key in coming:
                slot.is_guess &= slot.has_begun
                continue
            del self._wanted[key]
            if self._slots.cancel(slot):
                self._slots.release(slot)
            else:
                self._slots.stop(slot)
                self._unwanted.append(slot)
        self._clear(only_done=True)

    def reconsider(self, likely: Container[ExpertKey]) -> None:
        """Give up guesses that are not likely any more and that no thread has begun to read."""
        for key, slot in list(self._wanted.items()):
            if slot.is_guess and key not in likely and self._slots.cancel(slot):
                del self._wanted[key]
                self._slots.release(slot)

    def let_go(self, needed: Collection[Slot] = ()) -> None:
        """Free the memory of those that have left the budget and are not needed: of all at once, which takes less."""
        gone = [key for key, slot in self.leaving.items() if slot not in needed]
        if gone:
            self._slots.release(*map(self.leaving.pop, gone))

    def close(self) -> None:
        """Give up all, and wait for what was begun."""
        self.keep(())
        self.let_go()
        self._clear(only_done=False)

    def _clear(self, *, only_done: bool) -> None:
        for slot in [slot for slot in self._unwanted if not only_done or slot.is_done]:
            self._unwanted.remove(slot)
            with contextlib.suppress(Exception):  # nobody asked for it
                read_ns = self._slots.finish(slot).read_ns
                if slot.begun_bytes:  # else it was stopped before the first piece
                    self._wasted(slot, read_ns)
            self._slots.release(slot)
