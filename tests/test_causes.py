"""What salience is compared with is right, and a score that knows nothing is found out."""

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy.stats import chi2_contingency, spearmanr

from segmoe.embedded import MODEL
from tests.benchmarks import salience, validity
from tests.benchmarks.causes import CAUSES, LATELY, OTHERS, SELDOM, WINDOW, Past, Stock, causes, chi_squared
from tests.benchmarks.expectations import INTERVENTIONS
from tests.benchmarks.responses import Pair, Response, gathered
from tests.benchmarks.validity import correlations, partial_correlation, pooled_response, response, verdict


@pytest.fixture(scope="module")
def stock() -> Stock:
    return Stock(MODEL)


def texts(count: int, tokens: int = 64) -> list[list[int]]:
    return torch.randint(5, 4000, (count, tokens), generator=torch.Generator().manual_seed(1)).tolist()


def test_the_picked_experts_outputs_by_their_weights_are_what_the_stock_block_hands_on(stock: Stock) -> None:
    handed: list[torch.Tensor] = []
    blocks = [layer.mlp for layer in stock.model.model.layers]
    hooks = [block.register_forward_hook(lambda *args: handed.append(args[2][0])) for block in blocks]
    (reading,) = stock.read(texts(1))
    for hook in hooks:
        hook.remove()
    picks = torch.from_numpy(reading.picks)
    for layer, block in enumerate(blocks):
        with torch.inference_mode():
            _, weights, chosen = block.gate(reading.entered[:, layer])
            outputs = stock.outputs(layer, reading.entered[:, layer], picks[:, layer])
        assert torch.equal(chosen, picks[:, layer])
        torch.testing.assert_close((outputs * weights[..., None]).sum(1), handed[layer], atol=1e-12, rtol=1e-9)
        unit = (outputs / outputs.norm(dim=2, keepdim=True))[0].numpy()
        pairs = [float(unit[i] @ unit[j]) for i, j in combinations(range(stock.k), 2)]
        assert reading.apart[0, layer] == pytest.approx(1 - sum(pairs) / len(pairs))


def test_a_batch_is_read_as_its_texts_alone_and_its_loss_is_the_models(stock: Stock) -> None:
    both = texts(2)
    for text, reading in zip(both, stock.read(both), strict=True):
        (alone,) = stock.read([text])
        assert np.array_equal(reading.picks, alone.picks)
        np.testing.assert_allclose(reading.entropy, alone.entropy, atol=1e-9)
        np.testing.assert_allclose(reading.apart, alone.apart, atol=1e-6)  # norms are computed in single precision
        ids = torch.tensor([text])
        with torch.inference_mode():
            loss = float(stock.model(input_ids=ids, labels=ids).loss)
        assert np.nanmean(reading.loss) == pytest.approx(loss, rel=1e-6)


def test_a_sure_router_has_entropy_0_and_one_that_prefers_none_1() -> None:
    stock = Stock(MODEL)
    for scale, entropy in ((1e4, 0.0), (0.0, 1.0)):
        for layer in stock.model.model.layers:
            layer.mlp.gate.weight.data.mul_(scale)
        (reading,) = stock.read(texts(1))
        assert reading.entropy.mean() == pytest.approx(entropy, abs=1e-3)


def test_past_counts_as_a_counter_of_all_windows_does() -> None:
    rng = np.random.default_rng(0)
    layers, experts, k = 2, 8, 3
    picks = rng.random((20 * WINDOW, layers, experts)).argsort(axis=2)[:, :, :k]
    found = Past(layers, experts).read(picks)
    pairs: Counter[tuple[int, ...]] = Counter()
    singles: list[Counter[tuple[int, int]]] = []
    for number, window in enumerate(picks.reshape(-1, WINDOW, layers, k)):
        now = [(layer, *sorted(pair)) for token in window for layer in range(layers)
               for pair in combinations(token[layer].tolist(), 2)]  # fmt: skip
        shares = [sum(pairs[pair] <= times for pair in now) / len(now) for times in (SELDOM, 0, 10)]
        np.testing.assert_allclose(found[number][[1, 3, 4]], shares)
        assert found[number][5] == pytest.approx(-sum(math.log1p(pairs[pair]) for pair in now) / len(now))
        lately = sum(singles[-LATELY:], Counter())
        mine = Counter((layer, int(expert)) for token in window for layer in range(layers) for expert in token[layer])
        total = min(number, LATELY) * WINDOW * k + experts
        nll = [-math.log((lately[one] + 1) / total) for one in mine.elements()]
        assert found[number][0] == pytest.approx(sum(nll) / len(nll))
        pairs.update(now)
        singles.append(mine)


def test_chi_squared_is_scipys() -> None:
    rng = np.random.default_rng(0)
    now, before = rng.poisson(3.0, (2, 4, 9)).astype(float)
    now[:, 0] = before[:, 0] = 0  # an expert that was never picked
    wanted = [
        chi2_contingency(np.stack(rows)[:, 1:], correction=False).statistic for rows in zip(now, before, strict=True)
    ]
    assert chi_squared(now, before) == pytest.approx(np.mean(wanted))


def test_causes_leave_the_past_as_it_was_and_another_texts_picks_only_move_what_rests_on_picks(stock: Stock) -> None:
    warm, one, other = stock.read(texts(3))
    past = Past(*one.picks.shape[1:2], stock.experts)
    past.read(warm.picks)
    first = causes(one, past)
    assert np.array_equal(causes(one, past), first) and first.shape == (2, len(CAUSES) + len(OTHERS))
    picked = causes(stock.picking(one, other.picks), past)
    np.testing.assert_array_equal(picked[:, [2, 3]], first[:, [2, 3]])
    assert (picked[:, [0, 1, 4]] != first[:, [0, 1, 4]]).all()


def moved(seed: int, sequences: int = 300, windows: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Causes of unchanged and changed windows, [sequence, window, 5]: up, up, not, down, not."""
    rng = np.random.default_rng(seed)
    unchanged, changed = rng.normal(size=(2, sequences, windows, 5)) + rng.normal(size=(sequences, 1, 5))
    return unchanged, changed + np.array([2.0, 2.0, 0.0, -2.0, 0.0])


def agreement(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> list[str]:
    def signs(pair: tuple[np.ndarray, np.ndarray]) -> list[str]:
        return [response(pair[0][..., i], pair[1][..., i]).signs for i in range(5)]

    return [verdict(*both) for both in zip(signs(one), signs(other), strict=True)]


def test_a_score_that_follows_its_cause_agrees_and_a_random_one_nowhere_that_the_cause_moves() -> None:
    unchanged, changed = moved(0)
    noise = np.random.default_rng(1).normal(size=(2, *unchanged.shape))
    scores = (np.tanh(unchanged + 0.5 * noise[0]), np.tanh(changed + 0.5 * noise[1]))
    assert agreement((unchanged, changed), scores) == ["agree"] * 5
    both = np.concatenate(scores).reshape(-1, 5)
    shuffled = np.random.default_rng(2).permutation(both).reshape(2, *unchanged.shape)
    found = agreement((unchanged, changed), (shuffled[0], shuffled[1]))
    assert [found[i] for i in (0, 1, 3)] == ["disagree"] * 3
    partial = correlations(shuffled[1] - shuffled[0], changed - unchanged)
    assert np.abs(partial.partial[0]).max() < 0.2 and np.abs(partial.spearman[0]).max() < 0.2


def test_a_score_that_listens_to_another_cause_is_found_by_its_partial_correlation() -> None:
    rng = np.random.default_rng(0)
    causes = rng.normal(size=(100, 4, 5))
    scores = causes + 0.3 * rng.normal(size=causes.shape)
    scores[..., 2] += causes[..., 4]
    found = correlations(scores, causes)
    off = np.abs(found.partial[0] - np.diag(np.diag(found.partial[0])))
    assert found.partial[1, 2, 4] > 0.5 and (off > 0.2).sum() == 1
    assert found.spearman[0, 1, 1] == pytest.approx(spearmanr(scores[..., 1].ravel(), causes[..., 1].ravel()).statistic)
    assert (found.spearman[1] <= found.spearman[2]).all()


def test_a_level_of_its_own_hides_a_move_only_from_what_is_pooled() -> None:
    rng = np.random.default_rng(0)
    unchanged = rng.normal(size=(200, 4)) + 100.0 * rng.normal(size=(200, 1))
    changed = unchanged + 1.0
    assert response(unchanged, changed).signs == "+" and pooled_response(unchanged, changed).signs == "0"


def test_a_partial_correlation_is_that_of_residuals() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5))
    x -= x.mean(axis=0)
    left = [x[:, i] - x[:, 2:] @ np.linalg.lstsq(x[:, 2:], x[:, i])[0] for i in (0, 1)]
    r = np.corrcoef(x, rowvar=False)
    assert partial_correlation(r, 0, 1, [2, 3, 4]) == pytest.approx(np.corrcoef(*left)[0, 1])
    assert partial_correlation(np.ones((3, 3)), 0, 1, [2]) == 0.0


def imagined(sequences: int) -> list[Response]:
    """Scores that follow their causes where a text is changed; interventions that change nothing."""
    rng = np.random.default_rng(0)
    names = ("known domain", "unseen domain", "known domain, its own text", "unseen domain, its own text")
    found = []
    for _ in range(sequences):
        for number, name in enumerate((*names, *INTERVENTIONS)):
            d = len(CAUSES) + len(OTHERS)
            causes = Pair(*rng.normal(size=(2, 4, d)) + np.array([0, 2.0 * (number < len(names))])[:, None, None])
            scores = [np.tile(side[:, : len(CAUSES)], 2) for side in causes]
            changed = scores[1] if name in names else scores[0]
            found.append(Response(name, Pair(np.tanh(scores[0]), np.tanh(changed)), causes))
    return found


def test_the_command_finds_scores_that_follow_and_shuffled_ones_that_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validity, "SAMPLES", 10)
    monkeypatch.setattr(salience, "responses", lambda sequences, warm, say: iter(imagined(sequences)))
    outcome = CliRunner().invoke(salience.main, ["--sequences", "200"], catch_exceptions=False)
    lines = outcome.output.splitlines()
    follow, knows_nothing = (next(line for line in lines if line.startswith(start)) for start in (
        "figures before calibration: ", "shuffled scores: "))  # fmt: skip
    assert "should move: agree 20, disagree 0, open 0 of 20" in follow
    assert "should move: agree 0, disagree 20, open 0 of 20" in knows_nothing
    assert "own cause is closest: 5 of 5" in outcome.output


def test_unseen_is_compared_with_known() -> None:
    found = gathered(iter(imagined(2)))
    both = found.scores["unseen against known domain"]
    assert np.array_equal(both.unchanged, found.scores["known domain"].changed)
    assert np.array_equal(both.changed, found.scores["unseen domain"].changed) and both.changed.shape == (2, 4, 10)
