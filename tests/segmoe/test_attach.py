"""A stock model that is listened to: nothing changes, and it tells what a segmented one tells."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import segmoe
from segmoe.embedded import MODEL
from segmoe.events import CAPTURES, Counted, Event, Routed, StepDone
from tests import tiny
from tests.tiny import RecordingSink

IDS = torch.randint(5, 4000, (3, 40), generator=torch.Generator().manual_seed(1))
MASK = torch.ones_like(IDS)
MASK[1, :9] = 0


def stock(implementation: str = "eager") -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto", experts_implementation=implementation).eval()


def run(model: Any, texts: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = IDS[:texts], MASK[:texts]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
        torch.manual_seed(2)
        tokens = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=True, pad_token_id=0)
    return logits, tokens


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_listening_changes_no_bit_and_detaching_leaves_nothing(implementation: str) -> None:
    model = stock(implementation)
    before, keys = hooks(model), [set(vars(m)) for m in model.modules()]
    wanted = run(model)
    for capture in CAPTURES:
        with segmoe.attach(model, RecordingSink(), capture=capture):
            found = run(model)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert hooks(model) == before and [set(vars(m)) for m in model.modules()] == keys
    assert all(torch.equal(a, b) for a, b in zip(run(model), wanted, strict=True))


def test_it_tells_what_a_segmented_model_tells() -> None:
    """The same events field by field, but for times and residency."""
    one, other = RecordingSink(), RecordingSink()
    segmented = segmoe.load(MODEL, sink=one, capture="contribution")
    model = stock()
    segmoe.attach(model, other, capture="contribution")
    run(segmented)
    run(model)
    a, b = one.of(Routed), other.of(Routed)
    assert len(a) == len(b) == 5 * 7
    for x, y in zip(a, b, strict=True):
        assert (x.step, x.component, x.layer, x.phase) == (y.step, y.component, y.layer, y.phase)
        for name in ("topk_ids", "topk_weights", "sequence", "position"):
            assert np.array_equal(getattr(x, name), getattr(y, name))
        for name in ("c_norm", "h_dot_c", "h_norm", "sum_unit_norm"):
            assert np.array_equal(getattr(x.contribution, name), getattr(y.contribution, name))
    for x, y in zip(one.of(StepDone), other.of(StepDone), strict=True):
        assert (x.step, x.phase, x.tokens, x.sequences) == (y.step, y.phase, y.tokens, y.sequences)
        assert np.array_equal(x.nll, y.nll, equal_nan=True)
        assert y.hits == y.misses == y.loads == 0


@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
def test_other_implementations_show_the_same_contributions(implementation: str) -> None:
    one, other = RecordingSink(), RecordingSink()
    for name, sink in (("eager", one), (implementation, other)):
        model = stock(name).float()
        with segmoe.attach(model, sink, capture="contribution"), torch.no_grad():
            model(input_ids=IDS, attention_mask=MASK)
    for x, y in zip(one.of(Routed), other.of(Routed), strict=True):
        assert y.contribution is not None and np.array_equal(x.topk_ids, y.topk_ids)
        real = x.position >= 0
        np.testing.assert_allclose(x.contribution.impact()[real], y.contribution.impact()[real], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("texts", [3, 1])
def test_counts_are_the_sums_of_routing_without_padding(texts: int) -> None:
    model, counts, routing = stock(), RecordingSink(), RecordingSink()
    for capture, sink in (("counts", counts), ("routing", routing)):
        with segmoe.attach(model, sink, capture=capture):
            run(model, texts)
    assert not counts.of(Routed) and not routing.of(Counted)
    for c, r in zip(counts.of(Counted), routing.of(Routed), strict=True):
        assert (c.step, c.component, c.layer, c.phase) == (r.step, r.component, r.layer, r.phase)
        uses, weights = np.zeros(c.uses.shape, int), np.zeros(c.uses.shape)
        for row in np.flatnonzero(r.position >= 0):
            for expert, weight in zip(r.topk_ids[row], r.topk_weights[row], strict=True):
                uses[r.sequence[row], expert] += 1
                weights[r.sequence[row], expert] += weight
        assert np.array_equal(c.uses, uses)
        np.testing.assert_allclose(c.weights, weights, rtol=1e-5)


@pytest.mark.parametrize("load", ["segmented", "stock"])
def test_only_selected_layers_are_told_of_and_a_pause_is_silent(load: str) -> None:
    sink = RecordingSink()
    if load == "segmented":
        model = segmoe.load(MODEL, sink=sink, capture="contribution", select={"model": [1, 3]})
        paused = model.segmoe.paused
    else:
        model = stock()
        paused = segmoe.attach(model, sink, capture="contribution", select={"model": [1, 3]}).paused
    run(model)
    assert {event.layer for event in sink.of(Routed)} == {1, 3}
    steps = len(sink.of(StepDone))
    told = len(sink.events)
    with paused():
        run(model)
    assert len(sink.events) == told
    run(model)
    assert [event.step for event in sink.of(StepDone)][steps:] == list(range(2 * steps, 3 * steps))


def test_what_cannot_be_is_refused_with_a_sentence(tmp_path: Path) -> None:
    model = stock()
    with pytest.raises(segmoe.ConfigError, match="no capture level 'all'"):
        segmoe.attach(model, RecordingSink(), capture="all")  # type: ignore[arg-type]
    with pytest.raises(segmoe.ConfigError, match="select names talker"):
        segmoe.attach(model, RecordingSink(), select={"talker": [0]})
    with pytest.raises(segmoe.ConfigError, match=r"layers \[7\].*layers 0\.\.4"):
        segmoe.load(MODEL, sink=RecordingSink(), select={"model": [7]})
    with pytest.raises(segmoe.Unsupported, match="give the sink to"):
        segmoe.attach(segmoe.load(MODEL), RecordingSink())
    with pytest.raises(segmoe.Unsupported, match="no routed experts"):
        segmoe.attach(torch.nn.Linear(2, 2), RecordingSink())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_sink_that_raises_is_counted_and_a_pass_that_fails_does_not_stick() -> None:
    class Raising:
        def emit(self, event: Event, /) -> None:
            raise RuntimeError("always")

    model = stock()
    wanted = run(model)
    with segmoe.attach(model, Raising(), capture="contribution") as attached:
        assert all(torch.equal(a, b) for a, b in zip(run(model), wanted, strict=True))
        assert attached.sink_failures_total == 7 * 6
    sink = RecordingSink()
    with segmoe.attach(model, sink, capture="contribution"):
        with pytest.raises(IndexError):
            model(input_ids=torch.full((1, 3), 10**6))
        assert all(torch.equal(a, b) for a, b in zip(run(model), wanted, strict=True))
        assert len(sink.of(StepDone)) == 7


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe"])
def test_families_with_and_without_shared_experts_show_contributions(family: str) -> None:
    sink, model = RecordingSink(), tiny.build(family)
    with segmoe.attach(model, sink, capture="contribution"), torch.no_grad():
        model(input_ids=torch.arange(10)[None] + 3)
    assert sink.of(Routed) and all(event.contribution is not None for event in sink.of(Routed))


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_a_model_that_is_trained_may_be_listened_to(implementation: str) -> None:
    model, sink = stock(implementation).train(), RecordingSink()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    wanted = gradients()
    with segmoe.attach(model, sink, capture="contribution"):
        found = gradients()
    assert len(wanted) > 50 and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert len(sink.of(Routed)) == 5 and all(event.contribution is not None for event in sink.of(Routed))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Dynamo:UserWarning")
def test_a_compiled_model_tells_routing_alone() -> None:
    model, sink = stock(), RecordingSink()
    with torch.no_grad():
        wanted = model(input_ids=IDS, attention_mask=MASK).logits
        with segmoe.attach(model, sink, capture="contribution"):
            found = torch.compile(model, backend="eager")(input_ids=IDS, attention_mask=MASK).logits
    assert torch.equal(found, wanted)
    routed = sink.of(Routed)
    assert [event.layer for event in routed] == list(range(5)) and len(sink.of(StepDone)) == 1
    assert all(event.contribution is None for event in routed)
