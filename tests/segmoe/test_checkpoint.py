import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import segmoe
from segmoe.building import read_config
from segmoe.checkpoint import INDEX, open_checkpoint
from segmoe.errors import CheckpointError, Unsupported
from segmoe.locating import build_manifest
from tests import tiny


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
    assert found.token_cycle == {"model": 9}
    found.require_complete()


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
    found = manifest(copy)
    gone = {f"model.layers.{m.key.layer}.mlp.experts.{m.key.expert}." for m in found.missing}
    lost = {name for name in found.checkpoint.lost if ".experts." in name}
    assert gone == {re.sub(r"[a-z]+_proj\.weight$", "", name) for name in lost} and 4 < len(gone) < 20
    assert len(found.experts) == 24 - len(gone)
    with pytest.raises(CheckpointError, match=r"lacks 1 shards \(model-00003-of-00005.*and lacks"):
        found.require_complete()


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
    with pytest.raises(CheckpointError, match=r"lacks 1 of 24 experts, first model layer 1 expert 4 \("):
        manifest(copy).require_complete()


def test_another_training_has_another_digest(tmp_path: Path) -> None:
    one, other = (tiny.save(tiny.build("Qwen3Moe", seed=seed), tmp_path / str(seed)) for seed in (1, 2))
    assert open_checkpoint(one).digest != open_checkpoint(other).digest


def test_a_changed_config_changes_the_digest(copy: Path, qwen3: Path) -> None:
    before = open_checkpoint(qwen3).digest
    assert open_checkpoint(copy).digest == before
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert open_checkpoint(copy).digest != before


def test_a_hub_name_is_found_in_the_local_cache_and_read_through_its_links(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--org--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    for number, file in enumerate(qwen3.iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    found = open_checkpoint("org/name")
    assert found.folder == snapshot and found.digest == open_checkpoint(qwen3).digest
    manifest(snapshot).require_complete()
    with pytest.raises(CheckpointError, match="`hf download org/other` gets it"):
        open_checkpoint("org/other")


def test_a_quantized_checkpoint_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="is quantized"):
        manifest(copy)


def test_experts_of_another_dtype_than_the_config_are_refused(tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("Qwen3Moe"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    with pytest.raises(Unsupported, match=r"float32.* but its config says torch\.bfloat16"):
        segmoe.load(folder)


def test_an_expert_that_mixes_dtypes_is_refused(tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("Qwen3Moe"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.4.up_proj.weight"
    tensors[name] = tensors[name].half()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="gate_up_proj of expert 4 mixes"):
        manifest(folder)
