"""Against stock transformers with eager experts: the only reference that counts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import segmoe
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
