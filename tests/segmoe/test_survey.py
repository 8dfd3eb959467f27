import json
import shutil
from pathlib import Path

import pytest

from segmoe.checkpoint import INDEX
from segmoe.survey import survey
from tests import tiny


def test_a_complete_checkpoint_says_so_with_its_sizes(qwen3: Path) -> None:
    found = survey(qwen3, budget="100KiB")
    (one,) = found.components
    assert (one.layers, one.experts_found, one.experts_expected, one.token_cycle) == (3, 24, 24, 9)
    assert one.expert_bytes == 3 * 21 * 33 * 4
    parameters = sum(p.numel() for name, p in tiny.build("Qwen3Moe").named_parameters() if ".experts." not in name)
    assert found.non_expert_bytes == 4 * parameters
    assert found.is_complete and found.lines[-1] == "complete: 24 of 24"
    assert any("at least 12 experts" in line for line in found.lines)
    assert any("all experts fit" in line for line in survey(qwen3, budget=24 * one.expert_bytes).lines)
    assert not any("all experts fit" in line for line in survey(qwen3, budget=24 * one.expert_bytes - 1).lines)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
def test_every_family_and_layout_is_complete(family: str, layout: str, tmp_path: Path) -> None:
    assert survey(tiny.save(tiny.build(family), tmp_path, layout, shards=3)).is_complete


def test_tied_embeddings_are_not_missing(tmp_path: Path) -> None:
    assert survey(tiny.save(tiny.build("Qwen3Moe", tie_word_embeddings=True), tmp_path)).is_complete


def test_what_went_with_a_shard_is_listed(qwen3: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(qwen3, tmp_path / "copy"))
    weight_map = json.loads((copy / INDEX).read_text())["weight_map"]
    shard = "model-00001-of-00005.safetensors"
    (copy / shard).unlink()
    lost = {name for name, file in weight_map.items() if file == shard}
    found = survey(copy)
    assert found.missing_shards == (shard,)
    assert set(found.missing_others) == {name for name in lost if ".experts." not in name} != set()
    assert len(found.missing_experts) == len({name.rsplit(".", 2)[0] for name in lost if ".experts." in name})
    assert found.lines[-1].startswith("INCOMPLETE: ")


def test_a_weight_that_the_index_forgot_is_listed(qwen3: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(qwen3, tmp_path / "copy"))
    index = json.loads((copy / INDEX).read_text())
    del index["weight_map"]["model.layers.1.self_attn.q_proj.weight"]
    (copy / INDEX).write_text(json.dumps(index))
    assert survey(copy).missing_others == ("model.layers.1.self_attn.q_proj.weight",)
