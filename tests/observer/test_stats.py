"""Every estimator, five ways: batch formula, one by one, merged, interrupted, and fed with nasty input."""

from collections.abc import Callable

import numpy as np
import pytest

from observer.stats import ESTIMATORS, Array, Blocks, Estimator, Magnitude, Picks, Usage, Windows, layer_load
from observer.stats.moments import Moments
from tests.observer.streams import EXPERTS, joined, picks

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
    per_token = np.where(data.ids == expert, data.impact, 0).sum(axis=1)
    full = len(per_token) // 128
    s = per_token[: full * 128].reshape(full, 128).mean(axis=1)
    return full, s.mean(), ((s - s.mean()) ** 2).sum()


def batch_windows(data: Picks, expert: int) -> tuple[float, ...]:
    values = []
    for window in range(int(data.window[-1]) + 1):
        inside = data.window == window
        own = data.impact[inside][data.ids[inside] == expert]
        if len(own) >= 4:
            values.append(own.mean())
    return len(values), np.std(values) / np.mean(values)


FORMULAS: dict[type[Estimator], Callable[[Picks, int], tuple[float, ...]]] = {
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
            assert np.broadcast_to(array, (2, EXPERTS))[1, expert] == pytest.approx(wanted, rel=1e-10)
            assert not array[0].any()  # the other layer has seen nothing


@every_estimator
def test_texts_one_by_one_give_what_they_give_in_batches(kind: type[Estimator]) -> None:
    parts = texts(2, [40, 1, 300, 128, 64, 5])
    equal(fed(kind, parts), fed(kind, [joined(parts)]))


@every_estimator
def test_merging_equals_observing_everything(kind: type[Estimator]) -> None:
    parts = texts(3, [64, 192, 100, 28, 128, 256])
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


def test_a_rest_of_64_tokens_counts_at_the_end_and_63_do_not() -> None:
    for tokens, blocks in [(63, 0), (64, 1), (128, 1), (191, 1), (192, 2)]:
        estimator = Blocks.zeros(**SHAPE)
        estimator.update(picks(np.random.default_rng(8), tokens))
        assert estimator.closed().get().blocks[0, 0] == blocks
        assert estimator.closed(rest_counts=False).get().blocks[0, 0] == tokens // 128
        assert estimator.get().blocks[0, 0] == tokens // 128  # closing changes a copy


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
