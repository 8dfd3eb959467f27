"""Which experts are in memory. Who leaves next is policies.py; memory itself and what fills it is slots.py.

A layer says which experts it is about to ask for, in which order (`expect`). What happens is decided expert by expert
in that order, from history alone: a resident expert is a hit; for a missing one the policy's victim leaves, never an
expert that the layer still needs, unless nothing else is left. Loader threads only carry out early what is decided
early: as long as nobody leaves who was not computed yet and finds no place beside the budget (early.py). Behind that
they read, in the same places, the next who are missing, and then those that the next layer is likely to ask for. So
loads and evictions are the same with and without threads.

Tried and left out, with what it gave:
- Guessing the next layer's experts by pairs counted so far: over 128 decode tokens of Qwen3-30B with 280 to 1,536
  experts in memory, six guesses a layer were right in 37 to 51% and covered 9 to 50% of the misses; or by the last
  token's picks: they are in memory as soon as a token cycle fits. The next router is a better judge (guessing.py).
- A second file with experts contiguous and aligned: the hub's files hold most experts in one piece, and what is read
  beside them is 10 to 21%; never more could be won with twice the disk.
- Huge pages for experts that are copied through the page cache: 4 to 10% of a multiplication with plain weights,
  nothing with packed ones.
- Leaving one or two of the places for early reads free of guesses (.96 to 1.03 of the time), and reading likely experts
  in the order in which they will be asked for instead of the most likely first (.99 to 1.03).
- Deciding each in its turn where all are cached, since there is nothing to be read early: no difference.
- Sparing the last four that a layer asked for, lest each newcomer leaves for the next, which then waits until the
  newcomer was computed. Reading the next ones early does the same for the disk and changes nobody's turn to leave.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from segmoe.counters import Counters
from segmoe.early import Early
from segmoe.errors import ConfigError
from segmoe.events import Event, ExpertEvicted, ExpertKey, ExpertLoaded, ExpertWasted
from segmoe.manifest import Segment
from segmoe.policies import Policy, Victim
from segmoe.slots import Slot, Slots, Tensors

WAITING_NS = 3_000_000
"""What a layer must have waited for its experts lately, for those of the next one to be guessed. Guessing takes about a
millisecond a layer and finds a third of what is missed; with all files in the page cache, where a layer of Qwen3-30B's
width waits for a tenth of one, decoding took 1.01 to 1.16 times as long with guesses (tests/benchmarks/prefetch.py)."""

LATELY = 1 / 16
"""A layer's weight in what layers waited lately."""

Reason = Literal["capacity", "layer"]


class _HeldUp(NamedTuple):
    """A decision that waits for an expert to be computed. Until the policy hears of anything else it gives no other."""

    wanted: ExpertKey
    found: tuple[Victim, Reason]  # who must be computed, and then leaves


class ExpertCache:
    """A bounded number of experts in memory.

    Invariants: never more than `capacity_experts` experts nor `capacity_bytes` bytes of them, but for at most `early`
    that are held beside them, read before anybody has left for them or left and still in their place; a pinned expert
    stays; what `get` returns is valid until the next `get`, pinned until it is unpinned, and while `has_expected` until
    others are expected.
    """

    def __init__(
        self,
        segments: Mapping[ExpertKey, Segment],
        policy: Policy,
        *,
        capacity_experts: int | None = None,
        capacity_bytes: int | None = None,
        slots: Slots | None = None,
        early: int = 1,
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
        self.emit = emit
        self._segments = segments
        self._policy = policy
        self._slots = slots or Slots()
        self.may_prefetch = self._slots.threads > 0
        self._resident: dict[ExpertKey, Slot] = {}
        self._used_bytes = 0
        self._pins: dict[ExpertKey, int] = {}
        self._coming: dict[ExpertKey, None] = {}  # expected, in order, and not decided yet
        self._then: Sequence[ExpertKey] = ()  # likely to be expected next
        self._ahead: dict[ExpertKey, Slot] = {}  # decided, and not computed yet; the one in use included
        self._early = Early(self._slots, segments, early if self._slots.threads else 0, self._waste)
        self._slots.kept = lambda: 1 + self._early.most - self._early.buffers
        self._current: ExpertKey | None = None
        self._held_up: _HeldUp | None = None
        self._waited_ns = 0  # by the layer under way
        self._waited_lately_ns = 0.0

    def begin(self, step: int, tokens: int) -> None:
        """A forward pass with so many tokens starts; padding is none."""
        self.step = step
        self._policy.begin(step, tokens)

    def __len__(self) -> int:
        return len(self._resident)

    def __contains__(self, key: ExpertKey) -> bool:
        return key in self._resident

    @property
    def can_prefetch(self) -> bool:
        """Whether there are threads to read ahead, and layers wait for what is read."""
        return self.may_prefetch and self._waited_lately_ns >= WAITING_NS

    def expect(self, keys: Iterable[ExpertKey], then: Sequence[ExpertKey] = ()) -> None:
        """Say which experts the next calls of `get` ask for, each once and in this order; reading may begin at once.

        Takes back what was expected before. An expert that was not expected can be asked for all the same. Those that
        are likely to be expected `then` are read by threads that have nothing else to read.
        """
        coming = dict.fromkeys(keys)
        self._settle(coming)
        self._waited_lately_ns += LATELY * (self._waited_ns - self._waited_lately_ns)
        self._waited_ns = 0
        self._coming, self._then = coming, then
        self._look_ahead()

    def foresee(self, then: Sequence[ExpertKey]) -> None:
        """Say anew which experts are likely to be expected next, the most likely first."""
        self._then = then
        self._early.reconsider(then)
        self._look_ahead()

    def get(self, key: ExpertKey) -> Tensors:
        """The expert's parameters by name, read from disk if need be; counts one hit or one miss."""
        if self._current is not None:
            self._ahead.pop(self._current, None)
            self._current = None
            if self._coming or self.can_prefetch:  # others need its place
                self._early.let_go(self._ahead.values())
        slot = self._ahead.get(key)
        if slot is None:
            self._coming.pop(key, None)
            decided = self._decide(key, may_wait=False)
            assert decided is not None
            slot = decided
        self._current = key
        if self._coming or self._then:
            self._look_ahead()
        if slot.loading is not None:
            self._finish(key, slot)
        return self._slots.use(slot) if slot.is_as_read else slot.tensors

    @property
    def has_expected(self) -> bool:
        """Whether all experts that were expected are there and stay, in the budget or beside it, until others are.

        Not where those beside it keep threads from reading ahead.
        """
        if self._coming or (self._early.leaving and self.can_prefetch):
            return False
        return all(slot.is_done for slot in self._ahead.values())

    def is_awaited(self, key: ExpertKey) -> bool:
        """Whether `get` would wait for a thread that reads the expert."""
        slot = self._ahead.get(key)
        return slot is not None and not slot.is_done

    def at_hand(self, key: ExpertKey) -> Tensors | None:
        """The parameters of an expected expert before its turn, if it is there; valid until the next `get`."""
        slot = self._ahead.get(key)
        return None if slot is None or not slot.is_done or slot.has_failed else slot.tensors

    def pin(self, key: ExpertKey) -> None:
        """Keep a resident expert until it is unpinned as often as it was pinned.

        Who is expected may be computed and not resident: it has left already for one that is expected behind it.
        """
        if key not in self._resident:
            raise KeyError(key)
        self._held_up = None
        self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, key: ExpertKey) -> None:
        """Take back one pin."""
        self._held_up = None
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]

    def admit(self, key: ExpertKey, last_step: int) -> None:
        """Put an expert into memory that was there in an earlier process; neither told nor asked of the policy."""
        segment = self._segments[key]
        if key in self._resident or self._is_full(segment.nbytes):
            raise ConfigError(f"{key} was in memory and does not fit now; give the budget that was given then")
        slot = self._slots.start(segment)
        self._slots.finish(slot)
        slot.last_step = last_step
        self._resident[key] = slot
        self._used_bytes += segment.nbytes
        self.counters.misses += 1
        self.counters.loads += 1

    def close(self) -> None:
        """Forget all experts and close the shards."""
        self._settle()
        self._early.close()
        for key in list(self._resident):
            self._policy.forget(key)
        self._resident.clear()
        self._pins.clear()
        self._used_bytes = 0
        self._slots.close()

    def check_integrity(self) -> None:
        """Assert what must always hold; a failure is a bug of ours."""
        assert self.capacity_experts is None or len(self._resident) <= self.capacity_experts
        assert self._used_bytes == sum(slot.segment.nbytes for slot in self._resident.values())
        assert self.capacity_bytes is None or self._used_bytes <= self.capacity_bytes
        assert set(self._pins) <= set(self._resident)
        assert all(
            self._resident.get(key) is slot or self._early.leaving.get(key) is slot for key, slot in self._ahead.items()
        )
        assert not set(self._ahead) & set(self._coming)
        assert not any(key in self._early for key in self._resident)
        assert not self._early.leaving.keys() & self._resident.keys()
        assert len(self._early) <= self._early.most
        assert self._early.buffers + len(self._slots.spare) <= self._early.most + 1
        assert self.counters.prefetched <= self.counters.loads
        being_read = sum(slot.loading is not None for slot in self._resident.values())
        assert self.counters.loads == self.counters.misses - being_read
        assert len(self._resident) - being_read == self.counters.loads - self.counters.evictions

    def _look_ahead(self) -> None:
        """Decide what can be decided before its turn, so that threads read while others are computed.

        Where it ends, who would have to leave was not computed yet. Who is missing is known all the same, so that the
        next are read early; and once all that this layer needs was begun, what the next one is likely to need.
        """
        if not self._slots.threads:
            return
        for key in tuple(self._coming):
            if self._held_up is not None and self._held_up.found[0].key in self._ahead:
                break
            if self._decide(key, may_wait=True) is None:
                break
            del self._coming[key]
        if self._coming or self._then or self.can_prefetch:
            self._early.let_go(self._ahead.values())
        if self._coming:
            self._early.read(self._coming, self._resident)
        if self._then:
            self._early.read(self._then, self._resident, is_guess=True)

    def _decide(self, key: ExpertKey, *, may_wait: bool) -> Slot | None:
        """Count a hit, or make room and begin to read; None if one that was not computed yet would have to leave."""
        slot = self._resident.get(key)
        if slot is not None:
            self.counters.hits += 1
        else:
            slot = self._start(key, may_wait)
            if slot is None:
                return None
        self._ahead[key] = slot
        self._held_up = None
        slot.last_step = self.step
        self._policy.touch(key)
        return slot

    def _start(self, key: ExpertKey, may_wait: bool) -> Slot | None:
        segment = self._segments[key]
        while self._is_full(segment.nbytes):
            held_up, self._held_up = self._held_up, None
            found = held_up.found if held_up is not None and held_up.wanted == key else self._victim(key)
            if may_wait and (found is None or found[0].key in self._ahead):
                if found is None or not self._may_leave(found[0].key):
                    self._held_up = None if found is None else _HeldUp(key, found)
                    return None
                self._evict(*found, is_needed=True)
                continue
            if found is None:
                raise ConfigError(
                    f"all {len(self._resident)} experts in memory are pinned, {key} needs room; raise the budget"
                )
            self._evict(*found)
        self.counters.misses += 1
        slot = self._resident[key] = self._early.take(key) or self._slots.start(segment)
        self._used_bytes += segment.nbytes
        return slot

    def _victim(self, wanted: ExpertKey) -> tuple[Victim, Reason] | None:
        """Whom the policy gives, or of those that the layer still needs the one that it needs last."""
        kept: Container[ExpertKey] = self._coming if not self._pins else {**self._coming, **self._pins}
        victim = self._policy.victim(kept, wanted)
        if victim is None:
            needed = (key for key in reversed(self._coming) if key in self._resident and key not in self._pins)
            last = next(needed, None)
            return None if last is None else (Victim(last, 0.0, None), "layer")
        return victim, "capacity"

    def _may_leave(self, key: ExpertKey) -> bool:
        """Whether an expert that was not computed yet can leave the budget and stay beside it until it is.

        It must be there, and so must all before it, of whose loads is told first.
        """
        if self._ahead[key].is_packed:
            return False
        for other, slot in self._ahead.items():
            if not slot.is_done or slot.has_failed:
                return False
            self._finish(other, slot)
            if other == key:
                break
        if not self._early.has_room:
            self._early.let_go(self._ahead.values())
        return self._early.has_room

    def _evict(self, victim: Victim, reason: Reason, *, is_needed: bool = False) -> None:
        if victim.key in self._ahead and not is_needed:  # it was expected but never asked for
            self._finish(victim.key, self._ahead.pop(victim.key))
        slot = self._resident.pop(victim.key)
        self._policy.forget(victim.key)
        self._used_bytes -= slot.segment.nbytes
        if is_needed or (self._slots.threads and slot.mapped is not None):
            self._early.leave(slot, self._ahead.values())
        else:
            self._slots.release(slot)
        self.counters.evictions += 1
        self.emit(
            ExpertEvicted(
                step=self.step,
                key=victim.key,
                reason=reason,
                idle_steps=self.step - slot.last_step,
                policy_score=victim.score,
                trust=victim.trust,
                next_candidate=victim.next_candidate,
            )
        )

    def _finish(self, key: ExpertKey, slot: Slot) -> None:
        """Wait until the expert is there, and tell of it if it was read."""
        if slot.loading is None:
            return
        try:
            read_ns, waited_ns = self._slots.finish(slot)
        except BaseException:
            if slot.has_failed:  # and was not merely waited for by somebody who pressed Ctrl-C
                self.counters.misses -= 1  # nothing was delivered; the next try counts
                self._used_bytes -= slot.segment.nbytes
                self._policy.forget(key)
                self._held_up = None
                del self._resident[key]
                self._ahead.pop(key, None)
                self._slots.release(slot)
            raise
        self._waited_ns += waited_ns
        self.counters.loads += 1
        self.counters.prefetched += slot.is_guess
        self.counters.bytes_read += slot.segment.nbytes
        self.emit(
            ExpertLoaded(
                step=self.step,
                key=key,
                cause="prefetch" if slot.is_guess else "demand",
                bytes=slot.segment.nbytes,
                read_ns=read_ns,
                waited_ns=waited_ns,
            )
        )

    def _waste(self, slot: Slot, read_ns: int) -> None:
        segment = slot.segment
        self.counters.wasted += 1
        self.counters.bytes_read += min(slot.begun_bytes, segment.nbytes)
        self.emit(ExpertWasted(step=self.step, key=segment.key, bytes=segment.nbytes, read_ns=read_ns))

    def _settle(self, coming: Container[ExpertKey] = ()) -> None:
        """Drop what was expected; what is being read is waited for, so that nothing is left half done."""
        self._current = self._held_up = None
        self._coming, self._then = {}, ()
        if self._early.is_busy:
            self._early.keep(coming)
        if self._early.buffers:  # the next ones are copied there
            self._early.let_go()
        for key, slot in list(self._ahead.items()):
            if slot.loading is not None:
                self._finish(key, slot)
        self._ahead.clear()

    def _is_full(self, wanted: int) -> bool:
        if self.capacity_experts is not None and len(self._resident) >= self.capacity_experts:
            return True
        return self.capacity_bytes is not None and self._used_bytes + wanted > self.capacity_bytes
