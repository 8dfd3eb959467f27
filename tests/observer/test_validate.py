"""Ablation against zeroing weights by hand, and correlations that must and must not be there."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from observer.corpus import Text
from observer.db.session import open_db
from observer.errors import ObserverError
from observer.observation import ALL
from observer.validate import STATISTICS, Ablation, ablate, correlate, read_statistics
from segmoe.events import ExpertKey
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
    from observer import validate

    folder = tiny.save(tiny.build("Qwen3Moe"), tmp_path)
    monkeypatch.setattr(validate.AutoTokenizer, "from_pretrained", lambda path: Tokenizer())
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
    inside = 0
    for seed in range(5):
        found = correlate(*made_up(seed), samples=200)
        for rho in found["trust"].values():
            assert rho.value > 0.98 and rho.low > 0.9
        for name in STATISTICS:
            if name != "trust":
                rho = found[name]["per context"]
                assert abs(rho.value) < 0.6
                inside += rho.low <= 0 <= rho.high
    assert inside >= 24, "of 30 random statistics about 27 should have a 90% interval with zero in it"


def test_a_run_of_other_experts_is_refused(tmp_path: Path) -> None:
    engine = open_db(tmp_path / "r.db")
    with pytest.raises(ObserverError, match="holds other experts than the model"):
        read_statistics(engine, "none", [ExpertKey("model", 0, 0)])
    engine.dispose()
