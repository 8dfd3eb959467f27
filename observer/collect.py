"""Stands between a model and what is made of its events: a bounded queue, one consumer thread, counts of what is lost.

The only place with threads. `observation` and `record` are used by the consumer thread alone while it runs.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from observer.errors import CollectorError
from observer.gaps import Gaps
from observer.observation import Observation, TextRef
from observer.rows import TraceFile
from observer.state import Arrays, below, counts_of, of_counts, under
from observer.totals import QueueState, Snapshot, Totals
from segmoe.events import Event

if TYPE_CHECKING:
    from observer.trace import TraceWriter

QUEUE_EVENTS = 256
"""A Routed event of 2,048 tokens with 8 picks holds about half a megabyte."""

POLL_S = 0.5
"""How often somebody who waits looks whether the thread that it waits for is still there."""

logger = logging.getLogger(__name__)


class _Begin(NamedTuple):
    texts: tuple[TextRef, ...]
    evidence: bool
    place: Arrays | None


class _Flush(NamedTuple):
    done: threading.Event
    record: bool
    final: bool
    place: Arrays | None = None


_Item: TypeAlias = Event | _Begin | _Flush


class Collector:
    """An `EventSink`: hands events to an observation on its own thread and records a snapshot at each score window.

    Lossless, `emit` waits while the queue is full; otherwise it drops the event and counts it. What the observation or
    `record` raise stops both for good: later events count as dropped, `failure` tells why, the model never notices.

    `with collector.paused():` leaves passes out, which are then a gap of the record.

    Whoever wants to go on after a crash tells at `begin`, `flush` and `close` its own place between two batches. Then
    snapshots are taken only there, each with the state to go on from: whole batches are recorded, or nothing of them.
    """

    def __init__(
        self,
        observation: Observation,
        record: Callable[[Snapshot], None] | None = None,
        *,
        trace: TraceWriter | None = None,
        lossless: bool = True,
        queue_events: int = QUEUE_EVENTS,
    ) -> None:
        self.observation = observation
        self.failure: BaseException | None = None
        self.events_seen_total = 0
        self._record = record
        self._trace = trace
        self._lossless = lossless
        self._queue: queue.Queue[_Item | None] = queue.Queue(queue_events)
        self._queue_most = 0
        self._waited_ns = 0
        self._drops: dict[str, int] = {}
        self._gaps = Gaps()
        self._place: Arrays | None = None
        self._abandoned = False
        self._drops_lock = threading.Lock()  # both the model's thread and the consumer count drops
        self._closed = False
        self._is_paused = False
        self._thread = threading.Thread(target=self._consume, name="observer", daemon=True)
        self._thread.start()

    @property
    def drops(self) -> dict[str, int]:
        """Events that were not recorded, by reason."""
        with self._drops_lock:
            return dict(sorted(self._drops.items()))

    @property
    def events_dropped_total(self) -> int:
        """All events that were not recorded."""
        return sum(self.drops.values())

    @property
    def queue_state(self) -> QueueState:
        """How full the queue is and was, and what that cost the model."""
        return QueueState(self._queue.qsize(), self._queue_most, self._queue.maxsize, self._waited_ns)

    @property
    def totals(self) -> Totals:
        """A copy of the totals, for a progress line; may be an event behind."""
        return replace(self.observation.totals)

    def emit(self, event: Event, /) -> None:
        """Queue the event; while paused and after `close`, drop it."""
        if self._closed:
            self._drop("closed", event.step)
        elif self._is_paused:
            self._drop("paused", event.step)
        elif self._lossless:
            if not self._put(event):
                self._drop("observer thread ended", event.step)
        else:
            try:
                self._queue.put_nowait(event)
            except queue.Full:
                self._drop("queue full", event.step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While this lasts, what the model tells is not recorded but counted; begin and end it between passes.

        The model still makes the events. `model.segmoe.paused()` also saves that, and no gap tells of it.
        """
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def begin(self, texts: Sequence[TextRef], evidence: bool, place: Arrays | None = None) -> None:
        """Announce the batch of the events that follow: row r is texts[r]; never dropped, so this may wait.

        Without evidence (generated text) the events count for residency and score windows only.
        """
        self._put(_Begin(tuple(texts), evidence, place))

    def flush(self, *, record: bool = False, place: Arrays | None = None) -> None:
        """Wait until everything queued is consumed; then record how things stand, if asked for."""
        self._wait(_Flush(threading.Event(), record, final=False, place=place))

    def abandon(self) -> None:
        """End the thread and record nothing more: what is queued is no whole batch."""
        self._abandoned = True
        self.close()

    def close(self, place: Arrays | None = None) -> None:
        """Complete what is open, record the last snapshot, end the thread; raise what stopped the observing."""
        if not self._closed:
            self._wait(_Flush(threading.Event(), record=not self._abandoned, final=True, place=place))
            self._closed = True
            if self._put(None):
                self._thread.join()
            elif self.failure is None:
                self.failure = RuntimeError("the observer's thread ended by itself")
        if self.failure is not None:
            raise CollectorError(self.failure, self.events_dropped_total) from self.failure

    def _wait(self, flush: _Flush) -> None:
        if self._put(flush):
            while not flush.done.wait(POLL_S) and self._thread.is_alive():
                pass

    def _put(self, item: _Item | None) -> bool:
        """Wait for a place in the queue; False if nobody is there to make one, so that a model never waits in vain."""
        with contextlib.suppress(queue.Full):
            if self._thread.is_alive():
                self._queue.put_nowait(item)
                return True
        began_ns = time.perf_counter_ns()
        try:
            while self._thread.is_alive():
                with contextlib.suppress(queue.Full):
                    self._queue.put(item, timeout=POLL_S)
                    return True
            return False
        finally:
            self._waited_ns += time.perf_counter_ns() - began_ns

    def _consume(self) -> None:
        """Run on the consumer thread until `None` comes; after a failure it only empties the queue and counts."""
        while (item := self._queue.get()) is not None:
            self._queue_most = max(self._queue_most, min(self._queue.qsize() + 1, self._queue.maxsize))
            if self._abandoned:
                pass
            elif self.failure is None:
                try:
                    self._handle(item)
                except Exception as error:
                    self.failure = error
                    logger.warning("observing stopped, the model goes on without it", exc_info=True)
                    if not isinstance(item, (_Begin, _Flush)):
                        self._drop("observer failed", item.step)
            elif not isinstance(item, (_Begin, _Flush)):
                self._drop("observer failed", item.step)
            if isinstance(item, _Flush):
                item.done.set()

    def _handle(self, item: _Item) -> None:
        seen = self.observation
        if isinstance(item, _Begin):
            if item.place is not None:
                seen.end_batch()
                if seen.windows or (self._trace is not None and self._trace.is_full):
                    self._snapshot(tables=bool(seen.windows), place=item.place)
            self._place = item.place
            seen.begin(item.texts, item.evidence)
            if self._trace is not None:
                self._trace.begin(item.texts)
        elif isinstance(item, _Flush):
            self._flush(item)
        else:
            seen.take(item)
            if self._trace is not None:
                self._trace.take(item)
            self.events_seen_total += 1
            if seen.windows and self._place is None:
                self._snapshot(tables=True)

    def _flush(self, item: _Flush) -> None:
        if item.place is not None:
            self.observation.end_batch()
        if item.record:
            self._snapshot(tables=item.final, place=item.place, is_final=item.final)

    def _state(self, place: Arrays) -> Arrays:
        """Return what is needed to go on from between two batches."""
        return {
            **under("place", place),
            **under("observation", self.observation.state()),
            **under("drops", of_counts(self.drops)),
            **under("gaps", self._gaps.state()),
            **({} if self._trace is None else under("trace", self._trace.state())),
            "events_seen": np.array(self.events_seen_total),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a snapshot's state, before the first event."""
        self.observation.restore(below("observation", state))
        self._drops = counts_of(below("drops", state))
        self._gaps.restore(below("gaps", state))
        if self._trace is not None:
            self._trace.restore(below("trace", state))
        self.events_seen_total = int(state["events_seen"])

    def _snapshot(self, *, tables: bool, place: Arrays | None = None, is_final: bool = False) -> None:
        """Hand what is new to the record; at the end also what is cut short there, of which the state knows nothing."""
        seen, trace, files = self.observation, self._trace, tuple[TraceFile, ...]()
        if trace is not None and not is_final:
            files = trace.seal()
        state = None if place is None else self._state(place)
        if is_final:
            seen.finish()
            files = () if trace is None else trace.seal(rest=True)
        windows, seen.windows = tuple(seen.windows), []
        expert_windows, seen.expert_windows = tuple(seen.expert_windows), []
        salience = seen.take_salience()
        texts, seen.texts = tuple(seen.texts), []
        residency, seen.residency.rows = tuple(seen.residency.rows), []
        next_uses, seen.residency.next_uses = tuple(seen.residency.next_uses), []
        with self._drops_lock:
            gaps = (*self._gaps.take_changed(), *seen.gaps.take_changed())
        if self._record is None:
            return
        self._record(
            Snapshot(
                windows=windows,
                texts=texts,
                tables=seen.tables(final=is_final) if tables else (),
                totals=replace(seen.totals),
                events_seen=self.events_seen_total - sum(seen.not_evidence.values()),
                drops={**self.drops, **seen.not_evidence},
                passes=seen.passes,
                expert_windows=expert_windows,
                salience=salience,
                coactivation=seen.pairs() if tables else (),
                gaps=gaps,
                residency=residency,
                next_uses=next_uses,
                trace_files=files,
                state=state,
                is_final=is_final,
            )
        )

    def _drop(self, reason: str, step: int) -> None:
        with self._drops_lock:
            self._drops[reason] = self._drops.get(reason, 0) + 1
            self._gaps.add(reason, step)
