import threading
from types import SimpleNamespace

import numpy as np
import pytest

from observer import collect
from observer.collect import Collector
from observer.errors import CollectorError
from observer.observation import Observation
from observer.totals import Snapshot
from segmoe.events import Event
from tests.observer.streams import CONTEXTS, EXPERT_BYTES, Batch, batches


class Gated(Observation):
    """Waits with each event until the gate opens."""

    def __init__(self) -> None:
        super().__init__(EXPERT_BYTES, CONTEXTS)
        self.gate = threading.Event()

    def take(self, event: Event) -> None:
        self.gate.wait()
        super().take(event)


class Failing(Observation):
    """Fails at the third event."""

    taken = 0

    def take(self, event: Event) -> None:
        self.taken += 1
        if self.taken == 3:
            raise ValueError("made to fail")
        super().take(event)


def send(collector: Collector, run: list[Batch]) -> int:
    for batch in run:
        collector.begin(batch.texts, True)
        for event in batch.events:
            collector.emit(event)
    return sum(len(batch.events) for batch in run)


def test_a_lossless_collector_consumes_all_events_of_a_queue_of_one() -> None:
    snapshots: list[Snapshot] = []
    collector = Collector(Observation(EXPERT_BYTES, CONTEXTS, window_tokens=500), snapshots.append, queue_events=1)
    run = batches(1, 12)
    sent = send(collector, run)
    collector.close()
    assert collector.events_seen_total == sent and collector.drops == {}
    assert [t.ordinal for s in snapshots for t in s.texts] == list(range(48))
    assert [w.window_index for s in snapshots for w in s.windows] == list(range(4))
    assert snapshots[-1].events_seen == sent and all(s.tables for s in snapshots)


def test_what_comes_while_it_is_paused_is_a_gap_and_the_rest_is_as_if_it_had_not_been() -> None:
    run = batches(5, 9)
    snapshots: list[Snapshot] = []
    collector = Collector(Observation(EXPERT_BYTES, CONTEXTS), snapshots.append)
    send(collector, run[:3])
    with collector.paused():
        lost = send(collector, run[3:6])
        with collector.paused():
            pass
        lost += send(collector, run[6:7])
    sent = send(collector, run[:3] + run[7:])
    collector.close()
    assert collector.drops == snapshots[-1].drops == {"paused": lost}
    steps = [event.step for batch in run[3:7] for event in batch.events]
    gaps = {gap.first_step: gap for s in snapshots for gap in s.gaps}
    assert [tuple(gap) for gap in gaps.values()] == [("paused", min(steps), max(steps), lost)]
    never = Collector(Observation(EXPERT_BYTES, CONTEXTS), snapshots.append)
    assert send(never, run[:3]) + sent == collector.events_seen_total
    send(never, run[:3] + run[7:])
    never.close()
    a, b = snapshots[-2], snapshots[-1]
    assert a.totals == b.totals and len(a.tables) == len(b.tables) > 0
    for one, other in zip(a.tables, b.tables, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one.scores, other.scores, strict=True))


def test_threads_change_no_figure() -> None:
    run = batches(2, 10)
    alone = Observation(EXPERT_BYTES, CONTEXTS)
    for batch in run:
        alone.begin(batch.texts, True)
        for event in batch.events:
            alone.take(event)
    alone.finish()
    collector = Collector(Observation(EXPERT_BYTES, CONTEXTS), queue_events=2)
    send(collector, run)
    collector.close()
    for a, b in zip(alone.tables(final=True), collector.observation.tables(final=True), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a.scores, b.scores, strict=True))


def test_it_tells_how_full_its_queue_was_and_how_long_the_model_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is looked at when a wait begins, which opens the gate, and when it ends 7 ns later."""
    observation = Gated()
    looks = 0

    def clock() -> int:
        nonlocal looks
        looks += 1
        observation.gate.set()
        return 7 * looks

    monkeypatch.setattr(collect, "time", SimpleNamespace(perf_counter_ns=clock))
    collector = Collector(observation, queue_events=4)
    assert collector.queue_state == (0, 0, 4, 0)
    batch, *_ = batches(3, 1)
    collector.begin(batch.texts, True)
    for number, event in enumerate(batch.events * 5):
        assert number > 2 or looks == 0
        collector.emit(event)
    collector.flush()
    state = collector.queue_state
    assert state.queue_events == 0 and state.queue_most == 4
    assert state.waited_ns == 7 * looks / 2 > 0
    collector.abandon()


def test_a_dropping_collector_counts_what_it_drops_and_does_not_wait() -> None:
    observation = Gated()
    collector = Collector(observation, lossless=False, queue_events=4)
    collector.begin(batches(3, 1)[0].texts, True)
    events = [event for batch in batches(3, 5) for event in batch.events]
    for event in events:
        collector.emit(event)  # the consumer stands still; a waiting collector would never return
    dropped = collector.events_dropped_total
    assert dropped >= len(events) - 6 and set(collector.drops) == {"queue full"}
    observation.gate.set()
    collector.close()
    assert collector.events_seen_total + collector.events_dropped_total == len(events)
    assert collector.events_dropped_total == dropped


def test_an_exception_in_the_consumer_stops_it_visibly_and_never_reaches_emit(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector(Failing(EXPERT_BYTES, CONTEXTS), queue_events=1)
    sent = send(collector, batches(4, 6))
    collector.flush()
    assert isinstance(collector.failure, ValueError)
    assert collector.events_seen_total == 2 and collector.drops == {"observer failed": sent - 2}
    with pytest.raises(CollectorError, match="made to fail; 22 events were not recorded") as raised:
        collector.close()
    assert raised.value.dropped_total == sent - 2
    assert caplog.text.count("observing stopped") == 1


def test_an_exception_of_the_record_stops_the_observing(caplog: pytest.LogCaptureFixture) -> None:
    def record(snapshot: Snapshot) -> None:
        raise OSError("disk full")

    collector = Collector(Observation(EXPERT_BYTES, CONTEXTS, window_tokens=100), record)
    send(collector, batches(5, 4))
    with pytest.raises(CollectorError, match="disk full"):
        collector.close()
    assert collector.events_dropped_total > 0


def test_events_after_the_end_count_as_dropped() -> None:
    collector = Collector(Observation(EXPERT_BYTES, CONTEXTS))
    collector.close()
    collector.emit(batches(6, 1)[0].events[0])
    collector.close()
    assert collector.drops == {"closed": 1}


def test_flush_waits_until_everything_is_consumed() -> None:
    collector = Collector(Observation(EXPERT_BYTES, CONTEXTS))
    sent = send(collector, batches(7, 5))
    collector.flush()
    assert collector.events_seen_total == sent
    collector.close()


def test_flush_records_totals_without_ending_the_window() -> None:
    snapshots: list[Snapshot] = []
    collector = Collector(Observation(EXPERT_BYTES, CONTEXTS), snapshots.append)
    send(collector, batches(8, 2))
    collector.flush(record=True)
    assert len(snapshots) == 1 and snapshots[0].windows == () and snapshots[0].totals.hits == 6
    assert [text.ordinal for text in snapshots[0].texts] == [0, 1, 2, 3]  # those of the batch before
    collector.close()
    assert [text.ordinal for text in snapshots[1].texts] == [4, 5, 6, 7]
