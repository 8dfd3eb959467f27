import json
import shutil
from pathlib import Path

import pytest

from segmoe.checkpoint import INDEX, open_checkpoint
from segmoe.errors import CheckpointError
from segmoe.manifest import build_manifest
from segmoe.runtime import read_config


@pytest.fixture
def copy(qwen3: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(qwen3, tmp_path / "copy"))


def manifest(folder: Path):
    checkpoint = open_checkpoint(folder)
    return build_manifest(checkpoint, read_config(folder))


def test_every_expert_is_found_across_shard_borders(qwen3: Path) -> None:
    found = manifest(qwen3)
    assert len(found.experts) == 3 * 8
    files = [{piece.file for part in segment.parameters for piece in part.pieces} for segment in found.experts.values()]
    assert max(map(len, files)) == 2, "no expert of the fixture is split, so this test would prove nothing"
    assert found.token_cycle == 9


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_checkpoint(tmp_path / "nowhere")


def test_a_folder_without_config_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


def test_a_config_that_is_no_json_is_told(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be used"):
        read_config(copy)


def test_a_missing_shard_is_named_with_what_it_held(copy: Path) -> None:
    (copy / "model-00003-of-00005.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 5 shards \(model-00003-of-00005\.safetensors\) with \d+ of"):
        open_checkpoint(copy)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_truncated_shard_is_told(copy: Path, keep: int) -> None:
    shard = copy / "model-00002-of-00005.safetensors"
    data = shard.read_bytes()
    shard.write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match=r"00002-of-00005.* is truncated"):
        open_checkpoint(copy)


def test_a_header_that_is_no_json_is_told(copy: Path) -> None:
    shard = copy / "model-00002-of-00005.safetensors"
    data = bytearray(shard.read_bytes())
    data[8:12] = b"\xff\x00]{"
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"header of .* cannot be read"):
        open_checkpoint(copy)


def test_a_header_whose_sizes_lie_is_told(copy: Path) -> None:
    shard = copy / "model-00002-of-00005.safetensors"
    data = shard.read_bytes()
    assert b'"shape":[21,33]' in data
    shard.write_bytes(data.replace(b'"shape":[21,33]', b'"shape":[22,33]', 1))
    with pytest.raises(CheckpointError, match="bytes, not what its shape needs"):
        open_checkpoint(copy)


def test_an_index_that_names_an_absent_tensor_is_told(copy: Path) -> None:
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["model.ghost.weight"] = "model-00001-of-00005.safetensors"
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"places model\.ghost\.weight in .* which does not hold it"):
        open_checkpoint(copy)


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}'])
def test_a_broken_index_is_told(copy: Path, content: str) -> None:
    (copy / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=r"index|places a in"):
        open_checkpoint(copy)


@pytest.mark.parametrize("projection", ["gate_proj", "up_proj", "down_proj"])
def test_an_expert_that_lost_a_tensor_is_named_and_not_skipped(copy: Path, projection: str) -> None:
    index = json.loads((copy / INDEX).read_text())
    del index["weight_map"][f"model.layers.1.mlp.experts.4.{projection}.weight"]
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="1 of 24 experts are missing, first model layer 1 expert 4"):
        manifest(copy)


def test_a_changed_weight_place_changes_the_digest(copy: Path, qwen3: Path) -> None:
    before = open_checkpoint(qwen3).digest
    assert open_checkpoint(copy).digest == before
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert open_checkpoint(copy).digest != before
