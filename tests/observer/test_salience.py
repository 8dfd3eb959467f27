"""The five dimensions against their formulas written out token by token, and what each must respond to."""

import itertools
import math

import numpy as np
import pytest
import torch

from observer.salience import DIMENSIONS, Scorer, Window
from observer.salience.arousal import arousal
from observer.salience.calibration import EVER, LATELY, Calibration
from observer.salience.conflict import conflict
from observer.salience.novelty import Novelty
from observer.salience.reward import mean_nll
from observer.salience.surprise import Surprise
from segmoe.contributions import measured

LAYERS, EXPERTS, K = 2, 8, 3


def window(rng: np.random.Generator, *, among: list[int] | None = None, tokens: int = 32) -> Window:
    chosen = list(range(EXPERTS)) if among is None else among
    ids = np.array([[rng.permutation(chosen)[:K] for _ in range(LAYERS)] for _ in range(tokens)], np.intp)
    return Window(
        layers=np.arange(LAYERS),
        ids=ids,
        weights=rng.dirichlet(np.ones(K), size=(tokens, LAYERS)),
        sum_unit_norm=rng.uniform(0.5, 2, (tokens, LAYERS)),
        nll=rng.uniform(1, 5, tokens),
    )


def spread(w: Window) -> list[list[float]]:
    result = [[0.0] * EXPERTS for _ in range(LAYERS)]
    whole = sum(1 / rank for rank in range(1, K + 1)) * len(w.ids)
    for token, layers in enumerate(w.ids.tolist()):
        for layer, experts in enumerate(layers):
            by_weight = sorted(experts, key=lambda e: -w.weights[token, layer, experts.index(e)])
            for rank, expert in enumerate(by_weight, start=1):
                result[layer][expert] += 1 / rank / whole
    return result


def test_surprise_is_the_divergence_of_scipy_from_the_running_mean() -> None:
    from scipy.spatial.distance import jensenshannon

    rng = np.random.default_rng(1)
    surprise, q, bias = Surprise.zeros(LAYERS, EXPERTS), np.zeros((LAYERS, EXPERTS)), 0.0
    for number in range(20):
        w = window(rng)
        k = np.array(spread(w))
        if number:
            wanted = np.mean([jensenshannon(a, b, base=2) ** 2 for a, b in zip(k, q / bias, strict=True)])
            found = surprise.raw(w)
            assert found.value == pytest.approx(wanted)
            assert found.own.mean() == pytest.approx(wanted) and (found.own >= 0).all()
        surprise.learn(w)
        q, bias = 0.92 * q + 0.08 * k, 0.92 * bias + 0.08


def test_a_router_that_is_more_decided_about_the_same_picks_is_no_surprise() -> None:
    rng = np.random.default_rng(11)
    surprise = Surprise.zeros(LAYERS, EXPERTS)
    for _ in range(5):
        surprise.learn(window(rng))
    w = window(rng)
    decided = w.weights**3 / (w.weights**3).sum(axis=2, keepdims=True)
    assert arousal(w._replace(weights=decided), EXPERTS).value < 0.8 * arousal(w, EXPERTS).value
    assert surprise.raw(w._replace(weights=decided)).value == surprise.raw(w).value


def test_novelty_counts_every_pair_of_every_token() -> None:
    rng = np.random.default_rng(2)
    novelty, counts = Novelty.zeros(LAYERS, EXPERTS), dict[tuple[int, int, int], int]()
    for _ in range(6):
        w = window(rng)
        pairs = [
            (layer, *sorted((experts[i], experts[j])))
            for token in w.ids.tolist()
            for layer, experts in enumerate(token)
            for i in range(K)
            for j in range(i)
        ]
        found = novelty.raw(w)
        assert found.value == pytest.approx(np.mean([1 / math.sqrt(1 + counts.get(pair, 0)) for pair in pairs]))
        own = [1 / math.sqrt(1 + counts.get(pair, 0)) for pair in pairs if pair[0] == 1 and 4 in pair[1:]]
        assert found.own[1, 4] == pytest.approx(np.mean(own))
        novelty.learn(w)
        for pair in pairs:
            counts[pair] = counts.get(pair, 0) + 1


def test_arousal_reward_and_conflict_equal_their_formulas() -> None:
    w = window(np.random.default_rng(3))
    entropies = [[-sum(p * math.log(p) for p in ps) / math.log(K) for ps in layers] for layers in w.weights.tolist()]
    assert arousal(w, EXPERTS).value == pytest.approx(np.mean(entropies))
    apart = 1 - w.sum_unit_norm**2 / K**2
    found = conflict(w, EXPERTS)
    assert found.value == pytest.approx(apart.mean())
    uses = (w.ids[:, 0] == 5).any(axis=1)
    assert found.own[0, 5] == pytest.approx(apart[uses, 0].mean())
    assert mean_nll(w, EXPERTS).value == pytest.approx(w.nll.mean())


def test_conflict_is_about_directions_and_arousal_about_weights() -> None:
    sure, unsure = [0.9, 0.05, 0.05], [0.34, 0.33, 0.33]
    alike = np.array([[1.0, 0.5, 0.0], [1.0, 0.0, 0.5], [0.5, 1.0, 0.0]])
    opposed = alike * [[1], [-1], [1]]

    def scored(outputs: np.ndarray, weights: list[float]) -> tuple[float, float]:
        c = torch.from_numpy(np.concatenate((outputs * np.array(weights)[:, None], np.ones((1, 3)))))[None]
        unit = np.broadcast_to(measured(c).sum_unit_norm, (32, LAYERS))
        w = window(np.random.default_rng(13))._replace(
            weights=np.broadcast_to(weights, (32, LAYERS, K)), sum_unit_norm=unit
        )
        return arousal(w, EXPERTS).value, conflict(w, EXPERTS).value

    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in itertools.combinations(alike, 2)]
    assert scored(alike, sure)[1] == pytest.approx((1 - 1 / K) * (1 - np.mean(cosines)))
    assert scored(alike, sure)[1] == pytest.approx(scored(alike, unsure)[1])
    assert scored(alike, unsure)[0] > 2 * scored(alike, sure)[0]
    assert scored(opposed, unsure)[0] == scored(alike, unsure)[0]
    assert scored(opposed, unsure)[1] > scored(alike, unsure)[1] + 0.4


def test_the_calibration_is_the_weighted_mean_and_deviation_of_all_it_saw() -> None:
    values = np.random.default_rng(4).normal(1e8, 1.0, 200)
    calibration = Calibration.zeros([LATELY, EVER])
    for value in values:
        calibration.learn(np.array([value, value]))
    for figure, weights in enumerate(((1 - LATELY) ** np.arange(199, -1, -1), np.ones(200))):
        mean = np.average(values, weights=weights)
        assert calibration.mean[figure] == pytest.approx(mean, rel=1e-14)
        variance = np.average((values - mean) ** 2, weights=weights)
        assert calibration.variance[figure] == pytest.approx(variance, rel=1e-6)


def test_what_is_not_known_counts_as_usual() -> None:
    rng = np.random.default_rng(5)
    scorer = Scorer(LAYERS, EXPERTS)
    usual = 1 / (1 + math.e)
    for _ in range(5):
        w = window(rng)
        blind = w._replace(sum_unit_norm=np.full_like(w.sum_unit_norm, np.nan), nll=np.full_like(w.nll, np.nan))
        found = dict(zip(DIMENSIONS, scorer.score(blind).scores, strict=True))
        assert found["reward"] == 0.5 and found["conflict"] == pytest.approx(usual)


def test_a_scorer_that_goes_on_from_a_state_scores_as_if_never_interrupted() -> None:
    rng = np.random.default_rng(6)
    windows = [window(rng) for _ in range(30)]
    whole, first, second = Scorer(LAYERS, EXPERTS), Scorer(LAYERS, EXPERTS), Scorer(LAYERS, EXPERTS)
    wanted = [whole.score(w).scores.tolist() for w in windows]
    found = [first.score(w).scores.tolist() for w in windows[:13]]
    second.restore(first.to_state())
    first.score(windows[0])  # the state is a copy
    assert found + [second.score(w).scores.tolist() for w in windows[13:]] == wanted
    assert np.array_equal(second.take_own(), whole.take_own())


def test_merging_adds_pair_counts_exactly_and_weighs_the_rest() -> None:
    rng = np.random.default_rng(7)
    a, b, both = Scorer(LAYERS, EXPERTS), Scorer(LAYERS, EXPERTS), Scorer(LAYERS, EXPERTS)
    for number in range(20):
        w = window(rng)
        (a if number < 5 else b).score(w)
        both.score(w)
    weighed = (5 * a.surprise.routing + 15 * b.surprise.routing) / 20
    a.merge(b)
    assert np.array_equal(a.novelty.pairs, both.novelty.pairs)
    np.testing.assert_allclose(a.surprise.routing, weighed)
    assert a.calibration.seen.tolist() == [18, 20, 20, 20, 20]  # the first window of each has nothing to differ from


def test_a_change_of_experts_is_surprising_each_time_but_novel_only_once() -> None:
    rng = np.random.default_rng(8)
    scorer = Scorer(LAYERS, EXPERTS)
    here, there = [0, 1, 2, 3], [4, 5, 6, 7]
    for _ in range(40):
        scorer.score(window(rng, among=here))
    first = scorer.score(window(rng, among=there))
    for _ in range(40):
        scorer.score(window(rng, among=there))
    for _ in range(40):
        scorer.score(window(rng, among=here))
    again = scorer.score(window(rng, among=there))
    usual = scorer.score(window(rng, among=there)).raw
    surprise, novelty = DIMENSIONS.index("surprise"), DIMENSIONS.index("novelty")
    assert first.scores[surprise] > 0.95 and again.scores[surprise] > 0.9
    assert first.scores[novelty] > 0.95
    assert again.raw[novelty] == pytest.approx(usual[novelty], rel=0.2) and first.raw[novelty] > 5 * again.raw[novelty]


def test_an_experts_own_scores_single_it_out() -> None:
    """One expert appears anew among the others; surprise and novelty are its own."""
    rng = np.random.default_rng(9)
    scorer = Scorer(LAYERS, EXPERTS)
    for _ in range(60):
        scorer.score(window(rng, among=list(range(7))))
    scorer.take_own()
    scorer.score(window(rng))
    own = scorer.take_own()
    assert own.shape == (5, LAYERS, EXPERTS) and ((own >= 0) & (own <= 1)).all()
    for name in ("surprise", "novelty"):
        assert (own[DIMENSIONS.index(name)].argmax(axis=1) == 7).all()
    assert not scorer.take_own().any()
