from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from observer.errors import GridError
from observer.observation import ALL, Observation, TextRef
from observer.totals import ScoreTable
from segmoe.events import Contribution, ExpertKey, Routed, StepDone
from tests.observer.streams import CONTEXTS, EXPERT_BYTES, Batch, batches


def observed(run: list[Batch], **options: int) -> Observation:
    seen = Observation(EXPERT_BYTES, CONTEXTS, **options)  # type: ignore[arg-type]
    for batch in run:
        seen.begin(batch.texts, evidence=True)
        for event in batch.events:
            seen.take(event)
    seen.finish()
    return seen


def same(a: tuple[ScoreTable, ...], b: tuple[ScoreTable, ...]) -> bool:
    return all(np.array_equal(x, y) for s, t in zip(a, b, strict=True) for x, y in zip(s.scores, t.scores, strict=True))


def compacted(event: Routed) -> Routed:
    """The same without its padding."""
    real = event.position >= 0
    assert event.contribution is not None
    c = event.contribution
    return replace(
        event,
        topk_ids=event.topk_ids[real],
        topk_weights=event.topk_weights[real],
        sequence=event.sequence[real],
        position=event.position[real],
        contribution=Contribution(
            c_norm=c.c_norm[real], h_dot_c=c.h_dot_c[real], h_norm=c.h_norm[real], sum_unit_norm=c.sum_unit_norm[real]
        ),
    )


def test_the_same_events_give_the_same_rows() -> None:
    a, b = observed(batches(1, 6)), observed(batches(1, 6))
    assert same(a.tables(final=True), b.tables(final=True))
    assert (a.totals, a.windows, a.texts) == (b.totals, b.windows, b.texts)


def test_padding_is_no_evidence() -> None:
    run = batches(2, 6)
    assert any((event.position < 0).any() for batch in run for event in batch.events if isinstance(event, Routed))
    bare = [Batch(b.texts, [compacted(e) if isinstance(e, Routed) else e for e in b.events]) for b in run]
    assert same(observed(run).tables(final=True), observed(bare).tables(final=True))


def test_padding_may_hold_anything() -> None:
    run = batches(2, 3)
    for batch in run:
        for event in batch.events:
            if isinstance(event, Routed) and event.contribution is not None:
                event.contribution.c_norm[event.position < 0] = np.nan
    seen = observed(run)
    assert seen.not_evidence == {}
    assert same(seen.tables(final=True), observed(batches(2, 3)).tables(final=True))


def test_rows_that_are_not_finite_are_left_out_and_counted() -> None:
    run = batches(3, 3)
    first = run[0].events[1]
    assert isinstance(first, Routed) and first.contribution is not None
    first.contribution.c_norm[np.flatnonzero(first.position >= 0)[0]] = np.inf
    seen = observed(run)
    assert seen.not_evidence == {"not a finite number": 1}
    assert all(np.isfinite(array).all() for table in seen.tables(final=True) for array in table.scores)


def test_events_without_contributions_are_counted_as_no_evidence() -> None:
    run = batches(3, 1)
    bare = [replace(event, contribution=None) if isinstance(event, Routed) else event for event in run[0].events]
    seen = observed([Batch(run[0].texts, bare)])
    assert seen.not_evidence == {"no contribution captured": 2}


def test_every_expert_has_a_row_in_every_context_even_before_the_first_event() -> None:
    tables = Observation(EXPERT_BYTES, CONTEXTS).tables(final=False)
    assert [(t.component, t.context) for t in tables] == [("model", c) for c in (*sorted(CONTEXTS), ALL)]
    assert all(t.layers == (0, 2) and t.scores.trust.shape == (2, 6) and not t.scores.uses.any() for t in tables)


def test_all_contexts_together_are_the_sum_of_each() -> None:
    *parts, both = observed(batches(4, 8)).tables(final=True)
    for name in ("uses", "blocks", "ean"):
        total = sum(getattr(part.scores, name) for part in parts)
        np.testing.assert_allclose(getattr(both.scores, name), total, rtol=1e-12)
    assert both.scores.blocks[0, 0] > 3
    for table in (*parts, both):
        np.testing.assert_allclose(table.scores.load.sum(axis=1), 1)


def test_a_block_goes_on_over_texts_of_its_context() -> None:
    run = batches(5, 14, texts=3, longest=60)
    tokens = dict.fromkeys(CONTEXTS, 0)
    for batch in run:
        step = batch.events[-1]
        assert isinstance(step, StepDone)
        for row, text in enumerate(batch.texts):
            tokens[text.context] += int(((step.sequence == row) & (step.position >= 0)).sum())
    for table in observed(run).tables(final=True)[:-1]:
        full, rest = divmod(tokens[table.context], 256)
        assert (table.scores.blocks == full + (rest >= 128)).all()


def test_an_expert_with_a_larger_effect_ranks_higher_in_every_context() -> None:
    run = batches(6, 40, gain=[0.5, 1, 2, 3, 4, 5])
    for table in observed(run).tables(final=True):
        for row in table.scores.convergence:
            assert (np.argsort(row) == np.arange(6)).all()


def test_generated_text_counts_for_residency_only() -> None:
    run = batches(7, 2)
    seen = Observation(EXPERT_BYTES, CONTEXTS)
    for batch in run:
        seen.begin(batch.texts, evidence=False)
        for event in batch.events:
            seen.take(event)
    seen.finish()
    assert seen.texts == [] and seen.totals.predicted == 0
    assert seen.totals.hits == 6 and seen.totals.tokens == sum(window.tokens for window in seen.windows)
    assert not any(table.scores.uses.any() for table in seen.tables(final=True))


def test_windows_cover_all_tokens_and_steps_without_gap_or_overlap() -> None:
    seen = observed(batches(8, 20), window_tokens=300)
    windows = seen.windows
    assert len(windows) > 3 and [w.window_index for w in windows] == list(range(len(windows)))
    for before, after in pairwise(windows):
        assert after.first_token == before.last_token + 1 and after.first_step == before.last_step + 1
    assert windows[-1].last_token + 1 == seen.totals.tokens and all(w.tokens >= 300 for w in windows[:-1])
    for name in ("tokens", "hits", "misses", "loads", "evictions", "bytes_read", "predicted"):
        assert sum(getattr(w, name) for w in windows) == getattr(seen.totals, name)


def test_a_change_of_phase_ends_a_window() -> None:
    run = batches(9, 4)
    for batch in run[2:]:
        step = batch.events[-1]
        assert isinstance(step, StepDone)
        batch.events[-1] = replace(step, phase="decode")
    assert [(w.phase, w.first_step, w.last_step) for w in observed(run).windows] == [
        ("prefill", 0, 1),
        ("decode", 2, 3),
    ]


def test_the_nll_of_a_text_is_that_of_its_rows() -> None:
    run = batches(10, 2)
    seen = observed(run)
    step = run[1].events[-1]
    assert isinstance(step, StepDone)
    own = step.nll[(step.sequence == 2) & (step.position >= 0)]
    text = next(text for text in seen.texts if text.ordinal == 6)
    assert (text.tokens, text.predicted) == (len(own), len(own))
    assert text.nll_sum == pytest.approx(float(own.astype(np.float64).sum()))
    assert [text.ordinal for text in seen.texts] == list(range(8))
    assert sum(text.nll_sum for text in seen.texts) == pytest.approx(seen.totals.nll_sum)


def test_an_event_of_an_unknown_layer_is_refused() -> None:
    seen = Observation(EXPERT_BYTES, CONTEXTS)
    seen.begin([TextRef(0, "maths")] * 4, evidence=True)
    event = batches(11, 1)[0].events[1]
    assert isinstance(event, Routed)
    with pytest.raises(GridError, match="model layer 1"):
        seen.take(replace(event, layer=1))


def test_layers_with_different_numbers_of_experts_are_refused() -> None:
    with pytest.raises(GridError, match="3 experts in 2 layers"):
        Observation({ExpertKey("model", 0, 0): 1, ExpertKey("model", 0, 1): 1, ExpertKey("model", 1, 0): 1}, [])
