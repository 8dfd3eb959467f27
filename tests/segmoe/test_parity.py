"""Against stock transformers with eager experts: the only reference that counts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import segmoe
from segmoe.verdict import StockDefault, Verdict, same_bits
from tests import tiny


@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_segmented_equals_stock(family: str, dtype: torch.dtype, layout: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny.build(family, dtype), tmp_path, layout, shards=4)
    verdict = segmoe.verify(folder, experts=2, new_tokens=4)
    assert verdict.equal, "\n".join(verdict.lines)


@pytest.mark.parametrize("experts", [1, 8, 24])
def test_the_budget_changes_no_bit(experts: int, qwen3: Path) -> None:
    verdict = segmoe.verify(qwen3, experts=experts, new_tokens=4)
    assert verdict.equal, "\n".join(verdict.lines)


def test_tied_embeddings_and_dense_layers_are_exact(tmp_path: Path) -> None:
    model = tiny.build("Qwen3Moe", tie_word_embeddings=True, mlp_only_layers=[1])
    verdict = segmoe.verify(tiny.save(model, tmp_path, shards=3), experts=2, new_tokens=4)
    assert verdict.equal, "\n".join(verdict.lines)


def test_one_changed_expert_weight_is_noticed(qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict can fail: the segmented side is given a checkpoint that differs in one number of one expert."""
    changed = tiny.save(tiny.build("Qwen3Moe"), tmp_path)
    tensors = load_file(changed / "model.safetensors")
    tensors["model.layers.1.mlp.experts.0.down_proj.weight"][0, 0] += 0.25
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    from segmoe import parity

    load = parity.load
    monkeypatch.setattr(parity, "load", lambda path, **settings: load(changed, **settings))
    verdict = parity.verify(qwen3, new_tokens=4)
    assert not verdict.equal
    assert "values differ" in "\n".join(verdict.lines) and verdict.lines[-1].startswith("NOT the stock model")


@pytest.fixture(scope="module")
def verdict(qwen3: Path) -> Verdict:
    return segmoe.verify(qwen3, new_tokens=2)


def test_greedy_sampled_and_beam_generation_are_compared(verdict: Verdict) -> None:
    whats = [check.what for check in verdict.checks]
    for mode in ("greedy", "sampled", "beam"):
        assert f"tokens of {mode} generation, observed" in whats
        assert f"logits of each {mode} step, unobserved" in whats


def test_the_distance_of_stocks_default_from_its_eager_is_told_but_not_judged(tmp_path: Path) -> None:
    verdict = segmoe.verify(tiny.save(tiny.build("Mixtral"), tmp_path), new_tokens=2)
    assert verdict.equal and verdict.stock_default is not None
    assert verdict.stock_default.implementation == "grouped_mm"
    assert 0 <= verdict.stock_default.logit_difference < 1e-2
    assert verdict.lines[-2].startswith("note     stock's own default (grouped_mm) is up to ")
    assert replace(verdict, stock_default=StockDefault("grouped_mm", 99.0, True)).equal


def test_a_stock_default_that_does_not_run_is_told_too(verdict: Verdict) -> None:
    """Rows of 33 fp32 numbers are not aligned to 16 bytes, as grouped_mm wants them."""
    assert verdict.equal and "does not run this model here" in verdict.lines[-2]


def test_a_verdict_is_one_json_object(verdict: Verdict) -> None:
    found = json.loads(json.dumps(verdict.as_dict()))
    assert found["equal"] is True and len(found["checks"]) == len(verdict.checks)
    assert found["stock_default"]["implementation"] == "grouped_mm"


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [(0.0, -0.0, False), (float("nan"), float("nan"), True), (1.0, 1.0, True), (1.0, 1.0000001, False)],
)
def test_bits_are_compared_not_values(a: float, b: float, same: bool) -> None:
    assert same_bits(torch.tensor([a]), torch.tensor([b])) is same
