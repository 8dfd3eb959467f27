"""Observed or not, the model computes the same bits and loads and evicts the same experts in the same order.

Every capture level with every kind of sink, in prefill, greedy, sampled and beam generation; the full Omni model too.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoTokenizer

import segmoe
from observer.collect import Collector
from observer.errors import CollectorError
from observer.observation import Observation, TextRef
from segmoe.embedded import CORPUS, MODEL
from segmoe.events import CAPTURES, Event, ExpertEvicted, ExpertKey, ExpertLoaded, NullSink, Routed
from tests import omni, tiny
from tests.tiny import RecordingSink

TEXTS = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()[:8]]
WAYS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True},
    "beam": {"do_sample": False, "num_beams": 3},
}


class Outcome(NamedTuple):
    logits: torch.Tensor
    tokens: list[torch.Tensor]
    random_state: torch.Tensor
    residency: list[tuple[Any, ...]]


class SleepingSink:
    def emit(self, event: Event, /) -> None:
        time.sleep(0.0002)


class RaisingSink:
    def emit(self, event: Event, /) -> None:
        raise RuntimeError("always")


def sizes() -> dict[ExpertKey, int]:
    return {key: segment.nbytes for key, segment in segmoe.load(MODEL).segmoe.manifest.experts.items()}


class SlowObservation(Observation):
    """Lets a short queue run full."""

    def take(self, event: Event) -> None:
        time.sleep(0.001)
        super().take(event)


class HeldObservation(Observation):
    """Takes nothing before it may."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.may = threading.Event()

    def take(self, event: Event) -> None:
        self.may.wait()
        super().take(event)


@contextmanager
def collector(*, kind: type[Observation] = Observation, experts: Any = None, **options: Any) -> Iterator[Collector]:
    made = Collector(kind(sizes() if experts is None else experts, [text["context"] for text in TEXTS]), **options)
    made.begin([TextRef(row, text["context"]) for row, text in enumerate(TEXTS)], True)
    yield made


@contextmanager
def dead_thread(*, lossless: bool) -> Iterator[Collector]:
    """A collector whose thread has ended behind its back."""
    with collector(lossless=lossless, queue_events=4) as made:
        made._queue.put(None)
        made._thread.join()
        yield made


@contextmanager
def plain(kind: Callable[[], Any]) -> Iterator[Any]:
    yield kind()


SINKS: dict[str, Callable[[], Any]] = {
    "null": lambda: plain(NullSink),
    "recording": lambda: plain(RecordingSink),
    "sleeping": lambda: plain(SleepingSink),
    "raising": lambda: plain(RaisingSink),
    "collector": lambda: collector(),
    "collector that fails": lambda: collector(experts={ExpertKey("other", 0, 0): 1}),
    "dead thread, waiting": lambda: dead_thread(lossless=True),
    "dead thread, dropping": lambda: dead_thread(lossless=False),
    "queue full, waiting": lambda: collector(kind=SlowObservation, queue_events=2),
    "queue full, dropping": lambda: collector(kind=SlowObservation, queue_events=2, lossless=False),
}


def noting_residency(model: Any) -> list[tuple[Any, ...]]:
    """Loads and evictions as the cache tells them, whatever the sink does."""
    noted: list[tuple[Any, ...]] = []
    emit = model.segmoe.cache.emit

    def note(event: Any) -> None:
        if isinstance(event, (ExpertLoaded, ExpertEvicted)):
            noted.append((type(event).__name__, event.step, event.key))
        emit(event)

    model.segmoe.cache.emit = note
    return noted


def outcome(sink: Any, capture: Any) -> Outcome:
    """Score a padded batch, then continue two texts in each way."""
    model = segmoe.load(MODEL, experts=40, sink=sink, capture=capture)
    residency = noting_residency(model)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    torch.manual_seed(3)
    with torch.no_grad():
        batch = tokenizer([text["text"][:400] for text in TEXTS], return_tensors="pt", padding=True)
        logits = model(**batch).logits
        batch = tokenizer([text["text"][:60] for text in TEXTS[:2]], return_tensors="pt", padding=True)
        tokens = [model.generate(**batch, max_new_tokens=6, **way) for way in WAYS.values()]
    return Outcome(logits, tokens, torch.get_rng_state(), residency)


@pytest.fixture(scope="module")
def unobserved() -> Outcome:
    return outcome(None, "off")


def assert_same(found: Outcome, wanted: Outcome, *, moves: int = 500) -> None:
    assert torch.equal(found.logits, wanted.logits)
    assert all(torch.equal(a, b) for a, b in zip(found.tokens, wanted.tokens, strict=True))
    assert torch.equal(found.random_state, wanted.random_state)
    assert found.residency == wanted.residency
    assert len(wanted.residency) > moves, "hardly anything was loaded or evicted, so this would prove nothing"


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_sink_at_any_level_changes_anything(unobserved: Outcome, kind: str, capture: str) -> None:
    with SINKS[kind]() as sink:
        assert_same(outcome(sink, capture), unobserved)


def test_a_queue_that_is_full_makes_a_job_wait_and_loses_nothing() -> None:
    with collector(kind=SlowObservation, queue_events=2) as made:
        outcome(made, "contribution")
        made.close()
    assert made.events_dropped_total == 0 and made.events_seen_total > 500


def test_a_queue_that_is_full_makes_live_use_drop_and_every_loss_is_a_gap() -> None:
    snapshots: list[Any] = []
    sink = RecordingSink()
    outcome(sink, "contribution")
    with collector(kind=HeldObservation, queue_events=2, lossless=False, record=snapshots.append) as made:

        class Releasing:
            """Lets the observer go on when it has lost much."""

            def emit(self, event: Event, /) -> None:
                made.emit(event)
                if made.events_dropped_total > 100:
                    made.observation.may.set()

        outcome(Releasing(), "contribution")
        made.observation.may.set()
        made.close()
    dropped = made.drops["queue full"]
    assert dropped > 100 and made.events_seen_total > 0 and made.events_seen_total + dropped == len(sink.events)
    gaps = {(gap.reason, gap.first_step): gap.events for s in snapshots for gap in s.gaps}
    assert sum(events for (reason, _), events in gaps.items() if reason == "queue full") == dropped
    assert snapshots[-1].drops["queue full"] == dropped


def test_a_collector_that_failed_says_so_when_it_is_closed() -> None:
    with collector(experts={ExpertKey("other", 0, 0): 1}) as made:
        outcome(made, "contribution")
    with pytest.raises(CollectorError):
        made.close()
    assert made.drops["observer failed"] > 100


def test_a_collector_whose_thread_ended_loses_all_and_says_so() -> None:
    with dead_thread(lossless=True) as made:
        outcome(made, "contribution")
        with pytest.raises(CollectorError, match="ended by itself"):
            made.close()
    assert made.drops["observer thread ended"] > 100


def test_a_collector_at_work_has_seen_everything() -> None:
    with collector() as made:
        outcome(made, "contribution")
        made.close()
    assert made.events_seen_total > 500 and made.events_dropped_total == 0


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(omni.build(), tmp_path_factory.mktemp("omni"))


SPEAKING: dict[str, dict[str, Any]] = {
    "sampled": {},
    "greedy": {"thinker_do_sample": False, "talker_do_sample": False},
    "beam": {"return_audio": False, "thinker_do_sample": False, "thinker_num_beams": 3, "thinker_max_new_tokens": 6},
}
"""The library cannot speak what it found with beams: text alone."""


@pytest.fixture(scope="module")
def said(talking: Path) -> dict[str, Outcome]:
    return {way: spoken(talking, None, "off", **options) for way, options in SPEAKING.items()}


def spoken(folder: Path, sink: Any, capture: Any, **options: Any) -> Outcome:
    model = segmoe.load(folder, experts=8, sink=sink, capture=capture)
    residency = noting_residency(model)
    if options.get("return_audio", True):
        tokens, wave = omni.speak(model, **options)
    else:
        wave = torch.zeros(0)
        with torch.no_grad():
            tokens = omni.tokens_of(model.generate(input_ids=torch.tensor([omni.TURN]), **options))
    return Outcome(wave, [tokens], torch.get_rng_state(), residency)


@pytest.mark.parametrize("way", SPEAKING)
@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_that_talks_says_the_same(talking: Path, said: dict[str, Outcome], capture: str, way: str) -> None:
    sink = RecordingSink()
    assert_same(spoken(talking, sink, capture, **SPEAKING[way]), said[way], moves=50)
    if capture == "contribution":
        components = {event.component for event in sink.events if isinstance(event, Routed)}
        assert components == ({"thinker"} if way == "beam" else {"thinker", "talker"})


@pytest.mark.parametrize("kind", SINKS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_sink_changes_what_a_model_that_talks_says(talking: Path, said: dict[str, Outcome], kind: str) -> None:
    """Where collectors know other experts than these, they fail; the one at work knows them."""
    parts = segmoe.load(talking).segmoe.manifest.experts.items()
    with collector(experts={key: part.nbytes for key, part in parts}) if kind == "collector" else SINKS[kind]() as sink:
        assert_same(spoken(talking, sink, "contribution"), said["sampled"], moves=50)
        if kind == "collector":
            sink.close()
            assert sink.events_seen_total > 50 and sink.events_dropped_total == 0


def test_the_embedded_paths_exist() -> None:
    assert Path(MODEL).is_dir() and Path(CORPUS).is_file()
