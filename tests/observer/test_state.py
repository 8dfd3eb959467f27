"""A run that goes on from a state ends as one that was never interrupted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from observer.collect import Collector
from observer.gaps import Gaps
from observer.observation import Observation
from observer.residency import OVER_CAP, ResidencyLog
from observer.rows import NextUse
from observer.state import pack, unpack
from observer.totals import Snapshot
from segmoe.events import ExpertEvicted, ExpertKey, ExpertLoaded, ExpertWasted
from tests.observer.streams import CONTEXTS, EXPERT_BYTES, Batch, batches

WINDOW_TOKENS = 150


class Recorder:
    """Keeps what a record would keep."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def __call__(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    @property
    def state(self) -> dict[str, Any]:
        """The last state, as it comes out of a file."""
        states = [snapshot.state for snapshot in self.snapshots if snapshot.state is not None]
        return unpack(pack(states[-1]))

    def rows(self) -> list[object]:
        final = self.snapshots[-1]
        rows: list[object] = [final.totals, final.events_seen, final.drops, final.passes]
        rows += [w for s in self.snapshots for w in s.windows] + [t for s in self.snapshots for t in s.texts]
        rows += [r for s in self.snapshots for r in s.residency] + [u for s in self.snapshots for u in s.next_uses]
        rows += [[array.tolist() for array in table.scores] for table in final.tables]
        return rows


def run(parts: Sequence[Sequence[Batch]], recorder: Recorder, *, contexts: Sequence[str] = CONTEXTS) -> None:
    """Observe batches; between two parts the process dies and another one goes on."""
    done = 0
    for number, part in enumerate(parts):
        collector = Collector(Observation(EXPERT_BYTES, contexts, window_tokens=WINDOW_TOKENS), recorder)
        if number:
            collector.restore({k: v for k, v in recorder.state.items()})
            assert int(recorder.state["place/done"]) == done
        for batch in part:
            collector.begin(batch.texts, True, {"done": np.array(done)})
            for event in batch.events:
                collector.emit(event)
            done += 1
        if number < len(parts) - 1:
            collector.flush(record=True, place={"done": np.array(done)})
            collector.abandon()
        else:
            collector.close({"done": np.array(done)})


@pytest.mark.parametrize("cut", [1, 2, 7, 19])
def test_going_on_from_a_state_ends_as_if_never_interrupted(cut: int) -> None:
    events = batches(1, 20)
    whole, halves = Recorder(), Recorder()
    run([events], whole)
    run([events[:cut], events[cut:]], halves)
    assert whole.rows() == halves.rows()
    assert len(whole.snapshots) > 3


def test_contexts_may_appear_on_the_way() -> None:
    events = batches(1, 6)
    known, unknown = Recorder(), Recorder()
    run([events], known)
    run([events[:1], events[1:]], unknown, contexts=())
    assert known.rows() == unknown.rows()


def test_with_a_place_snapshots_hold_whole_batches_only() -> None:
    recorder = Recorder()
    run([batches(1, 20)], recorder)
    texts = 0
    for snapshot in recorder.snapshots:
        texts += len(snapshot.texts)
        assert snapshot.state is not None
        assert texts == 4 * int(snapshot.state["place/done"])


def test_a_collector_that_is_abandoned_records_nothing_more() -> None:
    recorder = Recorder()
    collector = Collector(Observation(EXPERT_BYTES, CONTEXTS), recorder)
    batch = batches(1, 1)[0]
    collector.begin(batch.texts, True, {})
    for event in batch.events:
        collector.emit(event)
    collector.abandon()
    assert recorder.snapshots == []


def test_the_state_of_an_open_batch_is_refused() -> None:
    seen = Observation(EXPERT_BYTES, CONTEXTS)
    seen.begin(batches(1, 1)[0].texts, evidence=True)
    with pytest.raises(RuntimeError, match="a batch is open"):
        seen.state()


KEY, OTHER = ExpertKey("model", 0, 1), ExpertKey("model", 2, 3)


def loaded(step: int, key: ExpertKey = KEY) -> ExpertLoaded:
    return ExpertLoaded(step=step, key=key, cause="demand", bytes=150, read_ns=7, waited_ns=5)


def evicted(step: int, key: ExpertKey = KEY) -> ExpertEvicted:
    return ExpertEvicted(
        step=step, key=key, reason="capacity", idle_steps=2, policy_score=0.5, trust=None, next_candidate=None
    )


def test_an_eviction_learns_when_its_expert_came_back_even_after_a_restart() -> None:
    first = ResidencyLog(EXPERT_BYTES, Gaps())
    for event in (loaded(1), evicted(2), loaded(3, OTHER)):
        first.take(event)
    assert [(row.event_index, row.kind, row.step, row.bytes) for row in first.rows] == [
        (0, "load", 1, 150),
        (1, "evict", 2, 150),
        (2, "load", 3, 150),
    ]
    second = ResidencyLog(EXPERT_BYTES, Gaps())
    second.restore(unpack(pack(first.state())))
    second.take(loaded(9))
    assert second.next_uses == [NextUse(1, 9)] and second.rows[0].event_index == 3


def test_a_wasted_read_is_neither_load_nor_return() -> None:
    log = ResidencyLog(EXPERT_BYTES, Gaps())
    wasted = ExpertWasted(step=3, key=KEY, bytes=150, read_ns=9)
    for event in (loaded(1), evicted(2), wasted, loaded(4)):
        log.take(event)
    assert [(row.kind, row.reason) for row in log.rows] == [
        ("load", "demand"),
        ("evict", "capacity"),
        ("waste", "prefetch"),
        ("load", "demand"),
    ]
    assert log.next_uses == [NextUse(1, 4)] and log.rows[2].read_ns == 9


def test_residency_events_over_the_cap_are_counted_as_a_gap() -> None:
    gaps = Gaps()
    log = ResidencyLog(EXPERT_BYTES, gaps, cap=1)
    for event in (evicted(1), loaded(2), evicted(3)):
        log.take(event)
    assert len(log.rows) == 1 and log.next_uses == [NextUse(0, 2)]
    assert [tuple(gap) for gap in gaps.take_changed()] == [(OVER_CAP, 2, 3, 2)]
