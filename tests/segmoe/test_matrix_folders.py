"""The shapes in which a whole checkpoint may lie on disk, each run against stock; damaged ones: test_checkpoint.py."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import segmoe
from segmoe.building import quiet_transformers
from segmoe.checkpoint import open_checkpoint
from segmoe.errors import CheckpointError
from segmoe.layerwise import verify_layers
from tests import tiny

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 5, 11]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def stock_logits(folder: Path) -> torch.Tensor:
    with quiet_transformers():
        stock = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto", experts_implementation="eager")
    return logits(stock.eval())


@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
def test_sixteen_bit_floats_are_exact(layout: str, tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("Qwen2Moe", torch.float16), tmp_path, layout, shards=3)
    verdict = segmoe.verify(folder, experts=2, new_tokens=3)
    assert verdict.equal, "\n".join(verdict.lines)


@pytest.mark.parametrize("seed", [1, 2])
def test_tensors_may_lie_in_any_order_in_any_shard(seed: int, tmp_path: Path) -> None:
    folder = tiny.save(tiny.build("Qwen3Moe"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = list(tensors)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    tiny.write_shards({names[place]: tensors[names[place]] for place in order}, folder, 7)
    segmented = segmoe.load(folder, experts=3)
    shards = [
        {piece.file for part in segment.parameters for piece in part.pieces}
        for segment in segmented.segmoe.manifest.experts.values()
    ]
    assert max(map(len, shards)) == 3, "no expert is in three files, so this test would prove less"
    assert torch.equal(logits(segmented), stock_logits(folder))


@pytest.mark.parametrize("original", [True, False], ids=["per-expert", "stacked"])
def test_shards_that_the_library_cuts_are_read(original: bool, tmp_path: Path) -> None:
    tiny.build("Olmoe").save_pretrained(tmp_path, save_original_format=original, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert torch.equal(logits(segmoe.load(tmp_path, experts=3)), stock_logits(tmp_path))


def test_links_to_the_folder_and_to_its_shards_are_followed(qwen3: Path, tmp_path: Path) -> None:
    elsewhere, linked = tmp_path / "elsewhere", tmp_path / "linked"
    linked.mkdir()
    shutil.copytree(qwen3, elsewhere)
    for file in elsewhere.iterdir():
        (linked / file.name).symlink_to(file)
    (tmp_path / "link").symlink_to(linked, target_is_directory=True)
    assert torch.equal(logits(segmoe.load(tmp_path / "link", experts=3)), stock_logits(qwen3))


def test_a_name_in_the_local_cache_runs_and_is_certified_offline(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "models--org--name"
    shutil.copytree(qwen3, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert torch.equal(logits(segmoe.load("org/name", experts=3)), stock_logits(qwen3))
    assert verify_layers("org/name").equal


@pytest.mark.parametrize("length", [0, 7, -8, 8, 1 << 20, 1 << 40, (1 << 64) - 1])
def test_a_header_length_that_lies_is_told(length: int, qwen3: Path, tmp_path: Path) -> None:
    """Lengths of 8 bytes more or less than the header's own, absurd ones, and one that ends inside a word."""
    folder = Path(shutil.copytree(qwen3, tmp_path / "copy"))
    shard = folder / "model-00002-of-00005.safetensors"
    data = shard.read_bytes()
    if abs(length) == 8:
        length += int.from_bytes(data[:8], "little")
    shard.write_bytes(length.to_bytes(8, "little") + data[8:])
    with pytest.raises(CheckpointError, match=r"00002-of-00005.*download"):
        open_checkpoint(folder)
