"""Salience, expert windows and pairs as an observation makes them of events."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from observer.observation import ALL, Observation, TextRef
from observer.rows import ExpertWindowRows
from segmoe.events import Contribution, Event, ExpertEvicted, ExpertKey, ExpertLoaded, Routed, StepDone
from tests.observer.streams import CONTEXTS, EXPERT_BYTES, Batch, batches


def observed(run: Sequence[Batch], *, window_tokens: int = 150) -> Observation:
    seen = Observation(EXPERT_BYTES, CONTEXTS, window_tokens=window_tokens)
    for batch in run:
        seen.begin(batch.texts, evidence=True)
        for event in batch.events:
            seen.take(event)
    seen.finish()
    return seen


def decoded(batch: Batch) -> Batch:
    """The same tokens, one forward pass per position."""
    events: list[Event] = []
    layers = [event for event in batch.events if isinstance(event, Routed)]
    done = batch.events[-1]
    assert isinstance(done, StepDone)
    for position in range(int(done.position.max()) + 1):
        for event in layers:
            rows = event.position == position
            assert event.contribution is not None
            c = event.contribution
            events.append(
                replace(
                    event,
                    step=1000 * event.step + position,
                    phase="decode",
                    topk_ids=event.topk_ids[rows],
                    topk_weights=event.topk_weights[rows],
                    sequence=event.sequence[rows],
                    position=event.position[rows],
                    contribution=Contribution(
                        c_norm=c.c_norm[rows],
                        h_dot_c=c.h_dot_c[rows],
                        h_norm=c.h_norm[rows],
                        sum_unit_norm=c.sum_unit_norm[rows],
                    ),
                )
            )
        rows = done.position == position
        events.append(
            replace(
                done,
                step=1000 * done.step + position,
                phase="decode",
                tokens=int(rows.sum()),
                sequence=done.sequence[rows],
                position=done.position[rows],
                nll=done.nll[rows],
                entropy=done.entropy[rows],
            )
        )
    return Batch(batch.texts, events)


def test_every_token_is_in_one_salience_window_of_its_text() -> None:
    seen = observed(batches(1, 8))
    (rows,) = seen.take_salience()
    texts = {text.ordinal: text for text in seen.texts}
    for ordinal, text in texts.items():
        mine = rows.ordinal == ordinal
        assert rows.position[mine].tolist() == list(range(0, text.tokens, 32))
        assert rows.tokens[mine].sum() == text.tokens
        assert rows.nll_sum[mine].sum() == pytest.approx(text.nll_sum)
        assert rows.predicted[mine].sum() == text.predicted
    five = np.stack([rows.surprise, rows.novelty, rows.arousal, rows.reward, rows.conflict])
    assert ((five >= 0) & (five <= 1)).all()
    np.testing.assert_allclose(rows.salience, five.mean(axis=0))
    assert seen.take_salience() == ()


def test_decoding_token_by_token_is_the_same_evidence_as_one_pass() -> None:
    run = batches(2, 4)
    prefill, decode = observed(run), observed([decoded(batch) for batch in run], window_tokens=10**6)
    for a, b in zip(prefill.tables(final=True), decode.tables(final=True), strict=True):
        for name in ("uses", "load", "weight_mean", "ean", "reap", "impact_mean", "windows", "window_cv"):
            np.testing.assert_allclose(getattr(a.scores, name), getattr(b.scores, name), rtol=1e-9)
    (one,), (other,) = prefill.take_salience(), decode.take_salience()
    assert set(zip(one.ordinal, one.position, one.tokens, strict=True)) == set(
        zip(other.ordinal, other.position, other.tokens, strict=True)
    )
    for a, b in zip(prefill.pairs(), decode.pairs(), strict=True):
        assert np.array_equal(a.count, b.count) and np.array_equal(a.other_layer, b.other_layer)


def summed(windows: Sequence[ExpertWindowRows], name: str) -> np.ndarray:
    return sum(np.asarray(getattr(w.scores, name)) for w in windows)  # type: ignore[return-value]


def test_expert_windows_add_up_to_the_run_and_end_as_it_stands() -> None:
    seen = observed(batches(3, 12))
    total = next(table.scores for table in seen.tables(final=False) if table.context == ALL)
    windows = seen.expert_windows
    assert [w.window_index for w in windows] == [w.window_index for w in seen.windows] and len(windows) > 4
    assert np.array_equal(summed(windows, "uses"), total.uses)
    np.testing.assert_allclose(summed(windows, "ean"), total.ean)
    for name in ("trust", "trust_low", "blocks", "block_mean", "windows"):
        assert np.array_equal(getattr(windows[-1].scores, name), getattr(total, name))
    assert (windows[0].scores.blocks < windows[-1].scores.blocks).all()


def test_accesses_are_distinct_experts_of_a_pass_and_loads_make_them_misses() -> None:
    run = batches(4, 3)
    key = ExpertKey("model", 2, 3)
    gone = ExpertEvicted(
        step=0, key=key, reason="capacity", idle_steps=1, policy_score=0.0, trust=None, next_candidate=None
    )
    run[0].events.insert(0, gone)
    (window,) = observed(run, window_tokens=10**6).expert_windows
    accesses = np.zeros((2, 6), int)
    for batch in run:
        for event in batch.events:
            if isinstance(event, Routed):
                accesses[[0, 2].index(event.layer), np.unique(event.topk_ids)] += 1
    misses = np.zeros((2, 6), int)
    misses[0, 1] = sum(isinstance(event, ExpertLoaded) for batch in run for event in batch.events)
    assert np.array_equal(window.misses, misses)
    assert np.array_equal(window.hits + window.misses, accesses)
    assert window.evictions[1, 3] == 1 and window.evictions.sum() == 1


def test_routing_alone_is_evidence_for_loads_and_pairs_but_not_for_trust() -> None:
    run = [
        Batch(b.texts, [replace(e, contribution=None) if isinstance(e, Routed) else e for e in b.events])
        for b in batches(5, 6)
    ]
    bare, full = observed(run), observed(batches(5, 6))
    a, b = (next(t.scores for t in seen.tables(final=True) if t.context == ALL) for seen in (bare, full))
    for name in ("uses", "load", "weight_mean"):
        assert np.array_equal(getattr(a, name), getattr(b, name))
    assert not a.blocks.any() and np.ptp(a.trust) == 0 and b.blocks.all()
    assert np.array_equal(bare.pairs()[0].count, full.pairs()[0].count)


def test_a_pass_that_never_ended_is_no_evidence() -> None:
    whole, broken = batches(6, 3), batches(6, 3)
    broken[1] = Batch(broken[1].texts, broken[1].events[:-1])
    without = [whole[0], Batch(whole[1].texts, []), whole[2]]
    a, b = observed(broken).tables(final=True), observed(without).tables(final=True)
    assert all(np.array_equal(x, y) for s, t in zip(a, b, strict=True) for x, y in zip(s.scores, t.scores, strict=True))


def test_rows_that_nobody_announced_are_left_out_and_counted() -> None:
    run = batches(7, 2)
    run[0] = Batch(run[0].texts[:2], run[0].events)
    seen = observed(run)
    assert seen.not_evidence == {"a row that was not announced": 2}
    assert [text.ordinal for text in seen.texts] == [0, 1, 4, 5, 6, 7]


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_details_go_on_from_a_state_as_if_never_interrupted(cut: int) -> None:
    run = batches(8, 12)
    first, second = Observation(EXPERT_BYTES, CONTEXTS, window_tokens=150), None
    rows = []
    for number, batch in enumerate(run):
        if number == cut:
            first.end_batch()
            rows += [first.expert_windows, first.take_salience()]
            second = Observation(EXPERT_BYTES, CONTEXTS, window_tokens=150)
            second.restore(first.state())
        seen = first if second is None else second
        seen.begin(batch.texts, evidence=True)
        for event in batch.events:
            seen.take(event)
    assert second is not None
    second.finish()
    whole = observed(run)
    windows = [*rows[0], *second.expert_windows]
    for a, b in zip(windows, whole.expert_windows, strict=True):
        for name in ("surprise", "novelty", "arousal", "reward", "conflict", "hits", "misses", "evictions"):
            assert np.array_equal(getattr(a, name), getattr(b, name))  # type: ignore[arg-type]
        assert all(np.array_equal(x, y) for x, y in zip(a.scores, b.scores, strict=True))  # type: ignore[union-attr]
    (salience,) = whole.take_salience()
    parts = [*rows[1], *second.take_salience()]
    assert np.array_equal(np.concatenate([p.surprise for p in parts]), salience.surprise)  # type: ignore[union-attr]


def test_the_pairs_told_are_those_that_tell_most() -> None:
    """Experts 0 and 1 are picked together always, in the first layer, and 4 follows on them."""
    rng = np.random.default_rng(9)
    seen = Observation(EXPERT_BYTES, CONTEXTS)
    for number, batch in enumerate(batches(9, 6)):
        seen.begin([TextRef(number * 4 + row, "maths") for row in range(4)], evidence=True)
        for event in batch.events:
            if isinstance(event, Routed):
                if event.layer == 0:
                    tied = rng.random(len(event.topk_ids)) < 0.5
                event.topk_ids[tied] = [0, 1] if event.layer == 0 else [4, 5]
            seen.take(event)
    (rows,) = seen.pairs()
    same = rows.layer == rows.other_layer
    assert (rows.expert[same] < rows.other_expert[same]).all()
    top = {(int(layer), *pair) for layer, *pair in list(zip(rows.layer, rows.expert, rows.other_expert))[:1]}  # noqa: B905
    assert top == {(0, 0, 1)} and rows.lift[0] > 1.5
    across = [
        tuple(map(int, row)) for row in np.stack((rows.layer, rows.expert, rows.other_layer, rows.other_expert), 1)
    ]
    assert set(across[int(np.argmin(same)) :][:4]) == {(0, i, 2, j) for i in (0, 1) for j in (4, 5)}
