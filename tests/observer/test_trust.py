"""Trust against its formulas written out for one expert at a time, and against what it must respond to."""

import math
from statistics import median

import numpy as np
import pytest
from scipy.stats import spearmanr

from observer.grid import grids
from observer.ledger import Ledger
from observer.stats.blocks import BlockFigures
from observer.stats.windows import WindowFigures
from observer.trust import DEFINITION_VERSION, Trust, TrustSettings, convergence, trust
from segmoe.events import ExpertKey
from tests.observer.streams import EXPERTS, joined, picks


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def by_hand(
    s: np.ndarray, per_use: list[list[float]], impact: list[float], uses: list[int], nbytes: list[int]
) -> list[tuple[float, ...]]:
    """The definition for one layer; s is [blocks][experts]."""
    experts, blocks, kappa = len(uses), len(s), 1
    prior = sum(float(x) for row in s for x in row) / (blocks * experts)
    estimates, sds = [], []
    for e in range(experts):
        i = (sum(float(row[e]) for row in s) + kappa * prior) / (blocks + kappa)
        v = (sum((float(row[e]) - i) ** 2 for row in s) + kappa * prior**2) / (blocks + kappa) ** 2
        estimates.append(i)
        sds.append(1.2 * math.sqrt(math.log(1 + v / i**2)))
    x = median(estimates)
    u0 = sum(impact) / sum(uses)
    u = [(impact[e] + 8 * u0) / (uses[e] + 8) * (sum(nbytes) / experts) / nbytes[e] for e in range(experts)]
    rows = []
    for e in range(experts):
        z = math.log(estimates[e]) - sds[e] ** 2 / 2
        parts = [sigma(z - math.log(x)), *(sigma(z + d * 1.974 * sds[e] - math.log(x)) for d in (-1, 1))]
        p = per_use[e]
        cv = 0.0
        if p:
            mean = sum(p) / len(p)
            cv = math.sqrt(sum((q - mean) ** 2 for q in p) / len(p)) / mean
        stable = (len(p) / (1 + cv) + 2 * 0.5) / (len(p) + 2)
        efficient = u[e] / (u[e] + median(u))
        rows.append((*parts, parts[0], stable, efficient))
    return rows


def test_trust_equals_the_formulas_of_the_design_written_out() -> None:
    rng = np.random.default_rng(1)
    keys = [ExpertKey("model", 0, expert) for expert in range(EXPERTS)]
    nbytes = [100 + 40 * expert for expert in range(EXPERTS)]
    grid = grids(dict(zip(keys, nbytes, strict=True)))["model"]
    data = joined([picks(rng, length) for length in (260, 140, 400, 180, 300, 38)])
    ledger = Ledger.zeros(grid)
    ledger.update(data)
    per_token = np.stack([np.where(data.ids == e, data.impact**1.5, 0).sum(axis=1) for e in range(EXPERTS)], axis=1)
    starts = range(0, len(per_token), 256)
    s = np.array([per_token[i : i + 256].mean(axis=0) for i in starts if len(per_token[i : i + 256]) >= 128])
    assert len(s) == 5 and len(per_token) % 256  # the last block is a rest of 128 tokens or more, or was left out
    per_use: list[list[float]] = [[] for _ in range(EXPERTS)]
    for window in range(int(data.window[-1]) + 1):
        inside = data.window == window
        for e in range(EXPERTS):
            own = data.impact[inside][data.ids[inside] == e]
            if len(own) >= 4:
                per_use[e].append(float(own.mean()))
    impact = [float(data.impact[data.ids == e].sum()) for e in range(EXPERTS)]
    uses = [int((data.ids == e).sum()) for e in range(EXPERTS)]
    scores = ledger.closed(rest_counts=True).scores(grid)
    wanted = np.array(by_hand(s, per_use, impact, uses, nbytes))
    found = np.stack([getattr(scores, name)[0] for name in Trust._fields], axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert DEFINITION_VERSION == 2


def made_up(impact: np.ndarray, blocks: int = 40, seed: int = 2) -> BlockFigures:
    """Blocks that scatter by a tenth around impact [layer, expert]."""
    rng = np.random.default_rng(seed)
    s = impact[None] * rng.normal(1, 0.1, (blocks, *impact.shape))
    return BlockFigures(np.full((len(impact), 1), float(blocks)), s.mean(0), ((s - s.mean(0)) ** 2).sum(0))


def test_an_expert_with_more_impact_is_trusted_more() -> None:
    impact = np.linspace(0.001, 0.02, 16)[None]
    found = convergence(made_up(impact))
    assert (np.diff(found.value[0]) > 0).all()
    assert ((found.low < found.value) & (found.value < found.high)).all()


def test_the_median_is_that_of_all_layers_unless_the_settings_say_its_own() -> None:
    rng = np.random.default_rng(5)
    evidence = made_up(np.stack([rng.gamma(4, 0.01, 16), rng.gamma(4, 0.001, 16)]))
    wide, own = convergence(evidence), convergence(evidence, TrustSettings(is_model_wide=False))
    assert (wide.value[0] > own.value[0]).all() and (wide.value[1] < own.value[1]).all()
    assert np.median(own.value[0]) == pytest.approx(np.median(own.value[1]), abs=0.02)
    shift = np.log(wide.value / (1 - wide.value)) - np.log(own.value / (1 - own.value))
    np.testing.assert_allclose(shift, shift[:, :1].repeat(16, 1))  # the order within a layer is the same


def test_a_layer_without_evidence_is_told_by_the_prior_beside_layers_that_have_some() -> None:
    evidence = made_up(np.stack([np.full(8, 0.01), np.zeros(8)]))
    nothing = convergence(BlockFigures(np.zeros((1, 1)), np.zeros((1, 8)), np.zeros((1, 8))))
    for found, wanted in zip(convergence(evidence), nothing, strict=True):
        np.testing.assert_allclose(found[1], wanted[0])


def test_doubling_all_impacts_leaves_convergence_unchanged() -> None:
    evidence = made_up(np.random.default_rng(3).gamma(1, 0.01, (2, 16)))
    doubled = BlockFigures(evidence.blocks, 2 * evidence.mean, 4 * evidence.m2)
    for a, b in zip(convergence(evidence), convergence(doubled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_more_evidence_narrows_the_interval() -> None:
    impact = np.full((1, 8), 0.01)
    widths = [float(np.mean(c.high - c.low)) for c in (convergence(made_up(impact, n)) for n in (2, 10, 100))]
    assert widths[0] > widths[1] > widths[2]


def test_random_weights_give_no_ordering_that_repeats() -> None:
    """Two halves of evidence without any difference between experts agree on nothing."""
    keys = {ExpertKey("model", 0, expert): 64 for expert in range(64)}
    grid = grids(keys)["model"]
    values = []
    for seed in (10, 11):
        ledger = Ledger.zeros(grid)
        ledger.update(picks(np.random.default_rng(seed), 4096, experts=64, k=4))
        values.append(ledger.scores(grid).trust[0])
    assert abs(spearmanr(*values).statistic) < 0.35  # 64 experts: 0.25 is two standard deviations
    assert np.ptp(values[0]) < 0.35


def test_nothing_observed_gives_prior_values_in_a_wide_interval() -> None:
    none = np.zeros((2, 4))
    found = trust(
        BlockFigures(np.zeros((2, 1)), none, none),
        WindowFigures(none, none),
        impact_sum=none,
        uses=none,
        expert_bytes=np.ones((2, 4)),
    )
    assert all(np.isfinite(array).all() for array in found)
    assert (found.stability == 0.5).all() and (found.efficiency == 0.5).all()
    assert np.ptp(found.trust) == 0
    assert (found.trust_high - found.trust_low > 0.4).all()


@pytest.mark.parametrize("blocks", [0.0, 1.0, 50.0])
def test_no_impact_anywhere_is_no_evidence_however_many_blocks(blocks: float) -> None:
    none = np.zeros((1, 4))
    nothing = convergence(BlockFigures(np.zeros((1, 1)), none, none))
    found = convergence(BlockFigures(np.full((1, 1), blocks), none, none))
    for a, b in zip(found, nothing, strict=True):
        assert np.array_equal(a, b)


def test_an_expert_that_was_never_used_is_trusted_less_the_longer_it_is_not() -> None:
    impact = np.array([[0.0, 0.01, 0.01, 0.01]])
    few, many = (convergence(made_up(impact, blocks)).value[0, 0] for blocks in (2, 200))
    assert many < few < 0.378 and many < 0.01


def test_the_smaller_of_two_like_experts_is_more_efficient() -> None:
    one = np.ones((1, 3))
    found = trust(
        made_up(one / 100),
        WindowFigures(one, 0 * one),
        impact_sum=one,
        uses=100 * one,
        expert_bytes=np.array([[50.0, 100.0, 200.0]]),
    )
    assert found.efficiency[0, 0] > found.efficiency[0, 1] == 0.5 > found.efficiency[0, 2]
