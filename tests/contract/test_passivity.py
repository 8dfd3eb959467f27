"""Observed or not, the model computes the same bits and loads and evicts the same experts in the same order."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoTokenizer

import segmoe
from observer.collect import Collector
from observer.observation import Observation, TextRef
from segmoe.embedded import CORPUS, MODEL
from segmoe.events import CAPTURES, ExpertEvicted, ExpertLoaded

TEXTS = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()[:16]]


class Outcome(NamedTuple):
    logits: list[torch.Tensor]
    tokens: torch.Tensor
    random_state: torch.Tensor
    residency: list[tuple[Any, ...]]


class RaisingSink:
    def emit(self, event: Any, /) -> None:
        raise RuntimeError("always")


def outcome(sink: Any, capture: str, collector: Collector | None = None) -> Outcome:
    """Score 16 texts of the embedded corpus in two batches, then sample a continuation of the first four."""
    model = segmoe.load(MODEL, experts=40, sink=sink, capture=capture)
    residency: list[tuple[Any, ...]] = []
    emit = model.segmoe.cache.emit

    def note(event: Any) -> None:
        if isinstance(event, (ExpertLoaded, ExpertEvicted)):
            residency.append((type(event).__name__, event.step, event.key))
        emit(event)

    model.segmoe.cache.emit = note
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    torch.manual_seed(3)
    logits = []
    with torch.no_grad():
        for start in (0, 8):
            part = TEXTS[start : start + 8]
            if collector is not None:
                collector.begin([TextRef(start + row, text["context"]) for row, text in enumerate(part)], True)
            batch = tokenizer([text["text"] for text in part], return_tensors="pt", padding=True)
            logits.append(model(**batch).logits)
        if collector is not None:
            collector.begin([TextRef(row, text["context"]) for row, text in enumerate(TEXTS[:4])], False)
        batch = tokenizer([text["text"][:60] for text in TEXTS[:4]], return_tensors="pt", padding=True)
        tokens = model.generate(**batch, max_new_tokens=8, do_sample=True)
    return Outcome(logits, tokens, torch.get_rng_state(), residency)


@pytest.fixture(scope="module")
def unobserved() -> Outcome:
    return outcome(None, "off")


def assert_same(found: Outcome, wanted: Outcome) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found.logits, wanted.logits, strict=True))
    assert torch.equal(found.tokens, wanted.tokens)
    assert torch.equal(found.random_state, wanted.random_state)
    assert found.residency == wanted.residency
    assert len(wanted.residency) > 500, "hardly anything was loaded or evicted, so this would prove nothing"


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_collector_at_work_changes_nothing(unobserved: Outcome, capture: str) -> None:
    manifest = segmoe.load(MODEL).segmoe.manifest
    sizes = {key: segment.nbytes for key, segment in manifest.experts.items()}
    collector = Collector(Observation(sizes, [text["context"] for text in TEXTS]))
    assert_same(outcome(collector, capture, collector), unobserved)
    collector.close()
    assert collector.events_seen_total > 500
    assert (collector.totals.tokens > 2000) and collector.events_dropped_total == 0


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sink_that_raises_at_every_event_changes_nothing(unobserved: Outcome, capture: str) -> None:
    assert_same(outcome(RaisingSink(), capture), unobserved)


def test_a_collector_that_has_failed_changes_nothing(unobserved: Outcome) -> None:
    """The observation knows none of the model's experts, so it fails at the first event."""
    from observer.errors import CollectorError
    from segmoe.events import ExpertKey

    collector = Collector(Observation({ExpertKey("other", 0, 0): 1}, [text["context"] for text in TEXTS]))
    assert_same(outcome(collector, "contribution", collector), unobserved)
    with pytest.raises(CollectorError):
        collector.close()
    assert collector.drops["observer failed"] > 100


def test_the_embedded_paths_exist() -> None:
    assert Path(MODEL).is_dir() and Path(CORPUS).is_file()
