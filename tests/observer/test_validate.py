"""Ablation against zeroing weights by hand, and correlations that must and must not be there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from observer.ablation import Ablation, ablate, nll_keeping
from observer.corpus import Text
from observer.db.session import open_db
from observer.errors import ObserverError
from observer.heldout import Falls, nulls, observe
from observer.ledger import Scores
from observer.observation import ALL
from observer.totals import ScoreTable
from observer.validate import STATISTICS, correlate, coverage, read_statistics, sample_experts, validation_rows
from segmoe.events import ExpertKey, Routed, StepDone
from tests import tiny

TEXTS = [Text(str(number), "ab"[number % 2], "text") for number in range(4)]
IDS = [[5, 9, 33, 7, 60, 2, 81], [11, 12, 13], [90, 4, 55, 66, 21], [8, 8, 3, 70]]


class Tokenizer:
    """Gives the ids of the texts in their order."""

    def __init__(self) -> None:
        self.rows = iter(IDS)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": next(self.rows)}


def test_removing_an_expert_is_zeroing_its_down_projection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from observer import ablation

    folder = tiny.save(tiny.build("Qwen3Moe"), tmp_path)
    monkeypatch.setattr(ablation.AutoTokenizer, "from_pretrained", lambda path: Tokenizer())
    found = ablate(folder, TEXTS, batch=2)
    assert found.predicted.tolist() == [6, 2, 4, 3] and len(found.keys) == 24
    model = AutoModelForCausalLM.from_pretrained(folder, experts_implementation="eager").eval()

    def nll(ids: list[int]) -> float:
        row = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=row).logits
        return float(torch.nn.functional.cross_entropy(logits[0, :-1], row[0, 1:], reduction="sum"))

    intact = [nll(ids) for ids in IDS]
    for key, cost in zip(found.keys, found.cost, strict=True):
        bank = model.model.layers[key.layer].mlp.experts
        with torch.no_grad():
            kept = bank.down_proj[key.expert].clone()
            bank.down_proj[key.expert] = 0
            assert np.allclose(cost, np.subtract([nll(ids) for ids in IDS], intact), atol=1e-4)
            bank.down_proj[key.expert] = kept
    assert np.abs(found.cost).max() > 0.1


def made_up(seed: int) -> tuple[Ablation, dict[str, dict[str, Any]]]:
    """2 layers x 20 experts, 30 texts of two contexts; `trust` is the cost itself, all else is random."""
    random = np.random.default_rng(seed)
    keys = [ExpertKey("model", layer, expert) for layer in range(2) for expert in range(20)]
    labels = ["ab"[text % 2] for text in range(30)]
    strength = random.random((40, 2))
    cost = np.stack([strength[:, text % 2] * 10 + random.normal(size=40) * 0.01 for text in range(30)], axis=1)
    ablation = Ablation(keys, labels, cost, np.full(30, 10.0))
    statistics = {}
    for context, truth in (("a", strength[:, 0]), ("b", strength[:, 1]), (ALL, strength.mean(axis=1))):
        statistics[context] = {name: truth if name == "trust" else random.random(40) for name in STATISTICS}
    return ablation, statistics


def test_a_statistic_that_knows_the_cost_reaches_one_and_random_ones_do_not() -> None:
    inside, tried = 0, 0
    for seed in range(5):
        found = correlate(*made_up(seed), samples=200)
        for rho in found["trust"].values():
            assert rho.value > 0.98 and rho.low > 0.9
        for name in STATISTICS:
            if name != "trust":
                rho = found[name]["per context"]
                assert abs(rho.value) < 0.6
                inside += rho.low <= 0 <= rho.high
                tried += 1
    assert inside >= 0.8 * tried, "about nine of ten random statistics should have a 90% interval with zero in it"


def test_a_run_of_other_experts_is_refused(tmp_path: Path) -> None:
    engine = open_db(tmp_path / "r.db")
    with pytest.raises(ObserverError, match="holds other experts than the model"):
        read_statistics(engine, "none", [ExpertKey("model", 0, 0)])
    engine.dispose()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from observer import ablation

    monkeypatch.setattr(ablation.AutoTokenizer, "from_pretrained", lambda path: Tokenizer())
    return tiny.save(tiny.build("Qwen3Moe"), tmp_path / "model")


def test_work_that_is_in_the_cache_is_not_done_again_and_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from observer import ablation

    whole = ablate(folder, TEXTS, batch=2)
    part = ablate(folder, TEXTS, whole.keys[3:9], batch=2, cache=tmp_path / "kept")
    assert np.array_equal(part.cost, whole.cost[3:9])
    done: list[int] = []
    again = ablate(folder, TEXTS, batch=2, cache=tmp_path / "kept", progress=lambda n, total: done.append(n))
    assert done == list(range(7, 25)) and np.array_equal(again.cost, whole.cost)
    monkeypatch.setattr(ablation, "_nll", None)
    assert np.array_equal(ablate(folder, TEXTS, batch=2, cache=tmp_path / "kept").cost, whole.cost)


def test_a_folder_that_can_keep_nothing_is_refused_before_the_work(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "file" / "in it", Path("/proc/none")):
        with pytest.raises(ObserverError, match=f"{cache}: finished work cannot be kept there .* with --cache"):
            ablate(folder, TEXTS, cache=cache)


def test_other_texts_are_other_work(folder: Path, tmp_path: Path) -> None:
    ablate(folder, TEXTS, [ExpertKey("model", 0, 0)], cache=tmp_path / "kept")
    ablate(folder, TEXTS[:3], [ExpertKey("model", 0, 0)], cache=tmp_path / "kept")
    assert len(list((tmp_path / "kept").glob("*.npz"))) == 2


def test_keeping_all_but_one_is_removing_it(folder: Path) -> None:
    found = ablate(folder, TEXTS, batch=2)
    every = set(found.keys)
    intact, without = nll_keeping(folder, TEXTS, [every, every - {found.keys[7]}], batch=2)
    assert (without - intact) * found.predicted.sum() == pytest.approx(found.cost[7].sum(), abs=1e-3)


def test_an_expert_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ObserverError, match=r"has no expert \('model', 9, 0\)"):
        ablate(folder, TEXTS, [ExpertKey("model", 9, 0)])


def test_a_sample_has_experts_of_every_layer_and_rank() -> None:
    _, statistics = made_up(1)
    keys = [ExpertKey("model", layer, expert) for layer in range(2) for expert in range(20)]
    chosen = sample_experts(statistics, keys, 10)
    assert [sum(key.layer == layer for key in chosen) for layer in range(2)] == [5, 5]
    impact = dict(zip(keys, statistics[ALL]["impact per token (I)"], strict=True))
    for layer in range(2):
        ranks = np.argsort(np.argsort([impact[key] for key in keys if key.layer == layer]))
        mine = sorted(int(ranks[key.expert]) // 4 for key in chosen if key.layer == layer)
        assert mine == [0, 1, 2, 3, 4]


def test_shuffled_routing_spreads_the_uses_evenly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from observer import heldout

    monkeypatch.setattr(heldout.AutoTokenizer, "from_pretrained", lambda path: lambda text: {"input_ids": IDS[0] * 30})
    found = nulls(folder, TEXTS)
    assert set(found) == {"trust, shuffled routing", "trust, random weights"}
    shuffled = next(table.scores for table in found["trust, shuffled routing"] if table.context == ALL)
    expected = shuffled.uses.sum(axis=1, keepdims=True) / shuffled.uses.shape[1]
    assert (abs(shuffled.uses - expected) < 5 * np.sqrt(expected)).all()


def test_observing_a_stock_model_gives_every_text_its_evidence() -> None:
    rows = iter(IDS)
    seen, falls = observe(tiny.build("Qwen3Moe"), lambda text: {"input_ids": next(rows)}, TEXTS, batch=2)
    assert [text.tokens for text in seen.texts] == [7, 3, 5, 4]
    total = next(t.scores for t in seen.tables(final=True) if t.context == ALL)
    assert (total.uses.sum(axis=1) == 19 * 3).all()
    keys = [ExpertKey("model", layer, expert) for layer in range(3) for expert in range(8)]
    assert ((falls.scores(keys, ALL) >= 0) & (falls.scores(keys, ALL) <= 1)).all()


def test_falls_of_nll_are_those_of_the_experts_own_tokens() -> None:
    nll = np.array([3.0, 1.0, 2.0, np.nan, 5.0, 4.0], np.float32)
    sequence, position = np.array([0, 0, 0, 0, 1, 1], np.int32), np.array([0, 1, 2, 3, 0, 1], np.int32)
    ids = np.array([[0], [0], [1], [1], [1], [0]], np.int16)
    zeros = dict.fromkeys(("wall_ns", "hits", "misses", "loads", "evictions", "bytes_read"), 0)
    common: Any = {"step": 0, "component": "model", "phase": "prefill", "sequence": sequence, "position": position}
    step = StepDone(tokens=6, sequences=2, nll=nll, entropy=nll, **common, **zeros)
    routed = Routed(layer=0, topk_ids=ids, topk_weights=np.ones((6, 1), np.float32), **common)
    falls = Falls()
    falls.take(step, [routed], ["a", "b"])
    keys = [ExpertKey("model", 0, expert) for expert in range(3)]
    assert falls.scores(keys, ALL).tolist() == [1 / (1 + 0.25), 0.0, 0.5]  # falls of 2 and 1; a rise of 1; none
    assert falls.scores(keys, "b").tolist() == [1.0, 0.5, 0.5]


def table(context: str, low: np.ndarray, value: np.ndarray, high: np.ndarray) -> ScoreTable:
    fields: Any = {name: np.zeros(value.shape) for name in Scores._fields}
    return ScoreTable(
        "model", (0,), context, Scores(**{**fields, "trust": value, "trust_low": low, "trust_high": high})
    )


def test_intervals_of_the_right_width_hold_nine_of_ten() -> None:
    rng = np.random.default_rng(3)
    truth, sd = rng.normal(size=4000), 0.4

    def seen(width: float) -> list[np.ndarray]:
        z = truth + rng.normal(size=4000) * sd
        return [1 / (1 + np.exp(-(z + side * 1.645 * sd * width))) for side in (-1, 0, 1)]

    keys = [ExpertKey("model", 0, expert) for expert in range(4000)]
    for width, wanted in ((1.0, 0.9), (0.5, 0.589), (2.0, 0.999)):
        low, value, high = seen(width)
        other = [part[None] for part in seen(width)]
        statistics = {ALL: {"trust": value, "trust_low": low, "trust_high": high}}
        (found,) = coverage(statistics, [table(ALL, *other)], keys)
        assert found.share == pytest.approx(wanted, abs=0.02)
        assert found.too_high + found.too_low == pytest.approx(1 - found.share)


def test_the_rows_for_the_record_hold_every_statistic_and_scope() -> None:
    ablation, statistics = made_up(2)
    rows = validation_rows(correlate(ablation, statistics, samples=20), [], ablation)
    assert {(row.statistic, row.scope) for row in rows} == {
        (name, scope)
        for name in (*STATISTICS, "trust - REAP")
        for scope in ("global", "within layer", "per context", "a", "b")
    }
    assert {row.texts for row in rows if row.scope == "a"} == {15} and {row.n for row in rows} == {40}
