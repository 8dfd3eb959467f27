"""The whole original model keeps all its functions: Qwen3-Omni in full, text in, text and speech out."""

from pathlib import Path

import pytest

import segmoe
from segmoe.events import Routed, StepDone
from tests import omni
from tests.tiny import RecordingSink

pytestmark = pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`:UserWarning")


def test_events_tell_thinker_from_talker(tmp_path: Path) -> None:
    omni.build().save_pretrained(tmp_path)
    sink = RecordingSink()
    model = segmoe.load(tmp_path, experts=16, sink=sink, capture="contribution")
    assert model.segmoe.manifest.token_cycle == {"thinker": 9, "talker": 6}
    omni.speak(model)
    steps = sink.of(StepDone)
    assert [step.step for step in steps] == list(range(len(steps)))
    assert {step.component for step in steps} == {"thinker", "talker"}
    for component, top_k in (("thinker", 3), ("talker", 2)):
        routed = [event for event in sink.of(Routed) if event.component == component]
        assert {event.layer for event in routed} == {0, 1, 2}
        assert {event.topk_ids.shape[1] for event in routed} == {top_k}
        assert {event.phase for event in routed} == {"prefill", "decode"}
        assert all((event.position >= 0).all() and event.contribution is not None for event in routed)
