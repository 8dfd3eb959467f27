"""Every estimator, five ways: batch formula, one by one, merged, interrupted, and fed with nasty input."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from observer import stats
from observer.stats import (
    Array,
    Blocks,
    Coactivation,
    Estimator,
    Magnitude,
    Picks,
    Texts,
    Transitions,
    Usage,
    Windows,
    layer_load,
    load_saturation,
    router_saturation,
    specialization,
)
from observer.stats.moments import Moments
from tests.observer.streams import EXPERTS, joined, picks

ESTIMATORS = sorted(
    (kind for kind in vars(stats).values() if isinstance(kind, type) and issubclass(kind, Estimator)),
    key=lambda kind: kind.__name__,
)
ESTIMATORS.remove(Estimator)
SHAPE = {"layers": 2, "experts": EXPERTS}
every_estimator = pytest.mark.parametrize("kind", ESTIMATORS, ids=lambda kind: kind.__name__)


def texts(seed: int, lengths: list[int]) -> list[Picks]:
    rng = np.random.default_rng(seed)
    return [picks(rng, length, layer=1) for length in lengths]


def fed(kind: type[Estimator], given: list[Picks]) -> Estimator:
    estimator = kind.zeros(**SHAPE)
    for part in given:
        estimator.update(part)
    return estimator


def equal(a: Estimator, b: Estimator) -> None:
    for x, y in zip(a.get(), b.get(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-15)


def of(data: Picks, expert: int, values: Array) -> Array:
    own: Array = values[data.ids == expert]
    return own


def batch_usage(data: Picks, expert: int) -> tuple[float, ...]:
    own = of(data, expert, data.weights)
    return len(own), len(own) / data.ids.size, own.mean()


def batch_magnitude(data: Picks, expert: int) -> tuple[float, ...]:
    c, w, impact = (of(data, expert, values) for values in (data.c_norm, data.weights, data.impact))
    return (c / w).sum(), c.mean(), impact.sum() / len(data.ids), impact.sum()


def batch_blocks(data: Picks, expert: int) -> tuple[float, ...]:
    per_token = np.where(data.ids == expert, data.impact**1.5, 0).sum(axis=1)
    full = len(per_token) // 256
    s = per_token[: full * 256].reshape(full, 256).mean(axis=1)
    return full, s.mean(), ((s - s.mean()) ** 2).sum()


def batch_windows(data: Picks, expert: int) -> tuple[float, ...]:
    values = []
    for window in range(int(data.window[-1]) + 1):
        inside = data.window == window
        own = data.impact[inside][data.ids[inside] == expert]
        if len(own) >= 4:
            values.append(own.mean())
    return len(values), np.std(values) / np.mean(values)


def batch_texts(data: Picks, expert: int) -> tuple[float, ...]:
    assert data.text is not None
    loads = [float((data.ids[data.text == text] == expert).mean()) for text in range(int(data.text[-1]) + 1)]
    return len(loads), np.mean(loads), np.var(loads, ddof=1) / len(loads)


def batch_coactivation(data: Picks, expert: int) -> tuple[float | Array, ...]:
    """Row of one expert, each pair counted token by token."""
    counts = np.zeros((EXPERTS, EXPERTS))
    for token in data.ids.tolist():
        for i in token:
            for j in token:
                counts[i, j] += i != j
    uses = [sum(expert in token for token in data.ids.tolist()) for expert in range(EXPERTS)]
    above = [(i, j) for i in range(EXPERTS) for j in range(i)]
    whole = sum(counts[i, j] for i, j in above) / sum(uses[i] * uses[j] for i, j in above)
    lift = [counts[expert, j] / (whole * uses[expert] * uses[j]) for j in range(EXPERTS)]
    return counts[expert], np.array(lift)


def batch_transitions(data: Picks, expert: int) -> tuple[float | Array, ...]:
    assert data.before is not None
    tokens = list(zip(data.before.tolist(), data.ids.tolist(), strict=True))
    counts = np.array([sum(expert in before and j in now for before, now in tokens) for j in range(EXPERTS)], float)
    given = sum(expert in before for before, _ in tokens)
    chance = np.array([sum(j in now for _, now in tokens) for j in range(EXPERTS)]) / len(tokens)
    return counts, counts / given, counts / given / chance


FORMULAS: dict[type[Estimator], Callable[[Picks, int], tuple[float | Array, ...]]] = {
    Texts: batch_texts,
    Coactivation: batch_coactivation,
    Transitions: batch_transitions,
    Usage: batch_usage,
    Magnitude: batch_magnitude,
    Blocks: batch_blocks,
    Windows: batch_windows,
}


@every_estimator
def test_an_estimator_equals_the_batch_formula(kind: type[Estimator]) -> None:
    data = joined(texts(1, [200, 77, 150, 33, 190]))
    figures = fed(kind, [data]).get()
    for expert in range(EXPERTS):
        for array, wanted in zip(figures, FORMULAS[kind](data, expert), strict=True):
            own = array if array.shape[1] == EXPERTS else np.broadcast_to(array, (2, EXPERTS))
            np.testing.assert_allclose(own[1, expert], wanted, rtol=1e-10, atol=1e-15)
            assert not array[0].any()  # the other layer has seen nothing


@every_estimator
def test_texts_one_by_one_give_what_they_give_in_batches(kind: type[Estimator]) -> None:
    parts = texts(2, [40, 1, 300, 128, 64, 5])
    equal(fed(kind, parts), fed(kind, [joined(parts)]))


@every_estimator
def test_merging_equals_observing_everything(kind: type[Estimator]) -> None:
    parts = texts(3, [64, 192, 200, 56, 256, 300])
    both = fed(kind, parts[:4])  # ends at the border of a block
    both.merge(fed(kind, parts[4:]))
    equal(both, fed(kind, parts))


@every_estimator
def test_merging_is_commutative_and_nothing_is_its_zero(kind: type[Estimator]) -> None:
    a, b = texts(4, [200, 30]), texts(5, [150, 100])
    ab, ba, a_and_nothing = fed(kind, a), fed(kind, b), fed(kind, a)
    ab.merge(fed(kind, b))
    ba.merge(fed(kind, a))
    equal(ab, ba)
    a_and_nothing.merge(kind.zeros(**SHAPE))
    only_a = fed(kind, a)
    equal(a_and_nothing, only_a.closed() if isinstance(only_a, Blocks) else only_a)


@every_estimator
def test_a_state_saved_in_mid_stream_goes_on_as_if_nothing_had_been(kind: type[Estimator]) -> None:
    parts = texts(6, [100, 90, 80, 200])
    first = fed(kind, parts[:2])
    state = first.to_state()
    first.update(parts[0])  # the state is a copy
    second = kind.from_state(state)
    for part in parts[2:]:
        second.update(part)
    for name, array in fed(kind, parts).to_state().items():
        assert np.array_equal(array, second.to_state()[name])


@every_estimator
def test_nothing_observed_gives_zeros_and_no_nan(kind: type[Estimator]) -> None:
    estimator = kind.zeros(**SHAPE)
    estimator.update(picks(np.random.default_rng(0), 0))
    assert all(not array.any() for array in estimator.get())


def test_equal_values_near_1e8_have_no_spread() -> None:
    values = np.full((1000, 1), 1e8 + 0.1)
    known = np.ones((1000, 1), dtype=bool)
    parts = [Moments.of(values[i : i + 10], known[i : i + 10]) for i in range(0, 1000, 10)]
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    assert total.mean[0] == pytest.approx(1e8 + 0.1, rel=1e-15)
    assert total.m2[0] / 1000 < 1e-12


def test_spread_of_values_near_1e8_is_kept() -> None:
    values = 1e8 + np.random.default_rng(7).normal(size=(4000, 1))
    known = np.ones((4000, 1), dtype=bool)
    total = Moments.of(values[:1], known[:1])
    for i in range(1, 4000, 7):
        total = total.plus(Moments.of(values[i : i + 7], known[i : i + 7]))
    assert total.m2[0] / 4000 == pytest.approx(values.var(), rel=1e-6)


def test_a_rest_of_half_a_block_counts_at_the_end_and_less_does_not() -> None:
    for tokens, blocks in [(127, 0), (128, 1), (256, 1), (383, 1), (384, 2)]:
        estimator = Blocks.zeros(**SHAPE)
        estimator.update(picks(np.random.default_rng(8), tokens))
        assert estimator.closed().get().blocks[0, 0] == blocks
        assert estimator.closed(rest_counts=False).get().blocks[0, 0] == tokens // 256
        assert estimator.get().blocks[0, 0] == tokens // 256  # closing changes a copy


def test_three_uses_in_a_window_say_nothing() -> None:
    one = np.ones((3, 1))
    estimator = Windows.zeros(1, 2)
    given = Picks(
        layer=0, ids=np.zeros((3, 1), np.intp), weights=one, c_norm=one, impact=one, window=np.zeros(3, np.intp)
    )
    estimator.update(given)
    assert estimator.get().windows[0, 0] == 0
    estimator.update(joined([given, given]))  # two windows of three uses are not one of six
    assert estimator.get().windows[0, 0] == 0


def test_entropy_is_that_of_scipy() -> None:
    from scipy.stats import entropy

    uses = np.random.default_rng(9).integers(0, 50, (3, 16)).astype(float)
    load = layer_load(uses)
    np.testing.assert_allclose(load.entropy, entropy(uses, axis=1))
    assert (load.used + load.dead == 16).all()


def test_gini_is_half_the_relative_mean_difference() -> None:
    uses = np.random.default_rng(9).integers(0, 50, (3, 16)).astype(float)
    for row, found in zip(uses, layer_load(uses).gini, strict=True):
        assert found == pytest.approx(np.abs(row[:, None] - row).mean() / row.mean() / 2)


def test_picks_by_chance_have_a_lift_of_one_within_and_across_layers() -> None:
    data = joined(texts(10, [4000, 4000]))
    together, after = fed(Coactivation, [data]).get(), fed(Transitions, [data]).get()
    assert isinstance(together, tuple) and isinstance(after, tuple)
    off = ~np.eye(EXPERTS, dtype=bool)
    assert np.abs(together[1][1][off] - 1).max() < 0.12 and np.abs(after[2][1] - 1).max() < 0.08


def test_without_the_layer_before_there_are_no_transitions() -> None:
    estimator = Transitions.zeros(**SHAPE)
    estimator.update(replace(texts(11, [50])[0], before=None))
    assert not estimator.get()[0].any()


def loads_of(rng: np.random.Generator, labels: Array, rates: Array) -> Texts:
    """Texts of 40 tokens; each text has its own taste, so that its tokens are alike."""
    estimator = Texts.zeros(1, rates.shape[1])
    for label in labels:
        taste = rng.dirichlet(30 * rates[int(label)])
        ids = rng.choice(rates.shape[1], size=(40, 1), p=taste).astype(np.intp)
        one = np.ones((40, 1))
        estimator.update(
            Picks(layer=0, ids=ids, weights=one, c_norm=one, impact=one, window=np.arange(40, dtype=np.intp) // 32)
        )
    return estimator


def test_contexts_that_do_not_differ_show_what_chance_gives_and_no_specialist() -> None:
    """The baseline against permutation: contexts are labels without meaning here."""
    rng = np.random.default_rng(12)
    rates = rng.dirichlet(np.full(16, 4.0))[None]
    found = [
        specialization([loads_of(rng, np.zeros(30), rates).get() for _ in range(3)])  # type: ignore[misc]
        for _ in range(40)
    ]
    bits, chance = (np.mean([getattr(f, name)[0] for f in found]) for name in ("bits", "chance_bits"))
    assert 0.85 < bits / chance < 1.15
    assert np.mean([f.specialists[0] for f in found]) < 0.1


def test_experts_that_serve_one_context_are_specialists_far_above_chance() -> None:
    rng = np.random.default_rng(13)
    rates = np.array([[8, 1, 1, 4.0], [1, 8, 1, 4], [1, 1, 8, 4]]) / 14
    found = specialization([loads_of(rng, np.full(40, label), rates).get() for label in range(3)])  # type: ignore[misc]
    assert found.bits[0] > 10 * found.chance_bits[0]
    assert (found.specialists[0], found.generalists[0]) == (3, 1)
    assert np.argmax(found.share[:, 0, :3], axis=0).tolist() == [0, 1, 2]


def test_saturation_rises_to_one_and_the_routers_agree_by_chance_if_they_pick_by_chance() -> None:
    rng = np.random.default_rng(14)
    uses = np.stack([rng.multinomial(500, rng.dirichlet(np.full(8, 5.0)), size=2) for _ in range(30)]).astype(float)
    found = load_saturation(uses)
    assert (found[-1] == 1).all() and (found[0] < 0.95).all() and (found[20:] > 0.95).all()
    picked = [np.array([rng.permutation(32)[:4] for _ in range(4000)]) for _ in range(2)]
    assert router_saturation(*picked) == pytest.approx(4 / 32, abs=0.01)
    assert router_saturation(picked[0], picked[0]) == 1
