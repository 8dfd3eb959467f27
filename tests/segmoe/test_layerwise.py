"""Layer by layer against the stock experts modules, which transformers alone has loaded."""

import shutil
from pathlib import Path

import pytest
import torch

from segmoe import CheckpointError, layerwise
from segmoe.building import quiet_transformers
from segmoe.checkpoint import open_checkpoint
from segmoe.layerwise import StockExperts, verify_layers
from tests import tiny
from tests.families.configs import families
from tests.families.sweep import build


@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_expert_of_every_layer_is_certified(family: str, dtype: torch.dtype, layout: str, tmp_path: Path) -> None:
    verdict = verify_layers(tiny.save(tiny.build(family, dtype), tmp_path, layout, shards=4))
    assert verdict.equal, "\n".join(verdict.lines)
    assert (verdict.experts_equal, verdict.experts, len(verdict.checks)) == (24, 24, 3)
    assert verdict.lines[-1].startswith("24 of 24 experts in 3 layers certified")


@pytest.mark.parametrize("byte", [0, 1, 2, 3])
def test_one_flipped_byte_of_one_expert_is_noticed(
    qwen3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, byte: int
) -> None:
    """Also the lowest byte of a weight's mantissa, which may drown in the rounding of the outputs."""
    changed = Path(shutil.copytree(qwen3, tmp_path / "copy"))
    location = open_checkpoint(changed).tensors["model.layers.1.mlp.experts.5.up_proj.weight"]
    with location.file.open("r+b") as stream:
        stream.seek(location.offset + 4 * 100 + byte)
        old = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([old[0] ^ 1]))
    stock = layerwise.StockExperts
    monkeypatch.setattr(layerwise, "StockExperts", lambda folder: stock(qwen3))
    verdict = verify_layers(changed)
    assert [check.equal for check in verdict.checks] == [True, False, True]
    assert not verdict.equal and "bytes of experts 5" in verdict.checks[1].detail
    assert verdict.experts_equal < verdict.experts == 24
    assert verdict.lines[-1].endswith(f"NOT the stock experts (checkpoint {verdict.checkpoint_digest[:12]})")


def test_a_wrong_computation_on_right_bytes_is_noticed(qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segmoe.experts import Seam

    forward = Seam.forward
    monkeypatch.setattr(Seam, "forward", lambda self, *args: torch.nextafter(forward(self, *args), torch.tensor(9.0)))
    verdict = verify_layers(qwen3)
    assert not verdict.equal and verdict.experts_equal == 0
    assert "outputs of 256 rows by" in verdict.checks[0].detail


def test_the_stock_side_holds_one_layer_at_a_time(qwen3: Path) -> None:
    stock = StockExperts(qwen3)
    modules = [stock._model.get_submodule(path) for path in stock.paths]
    for path in stock.paths:
        with stock.loaded(path) as module:
            assert not module.gate_up_proj.is_meta
            assert [other.gate_up_proj.is_meta for other in modules].count(False) == 1
    assert all(parameter.is_meta for parameter in stock._model.parameters())


def test_a_config_without_a_dtype_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    import json

    folder = tiny.save(tiny.build("Qwen3Moe", torch.bfloat16), tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    settings.pop("dtype")
    (folder / "config.json").write_text(json.dumps(settings))
    assert verify_layers(folder).equal


def test_each_layer_is_reported_with_the_time_that_is_left(qwen3: Path) -> None:
    lines: list[str] = []
    verify_layers(qwen3, experts=1, report=lines.append)
    assert [line.split("  ")[0] for line in lines] == ["1 of 3", "2 of 3", "3 of 3"]
    assert all("left)" in line for line in lines)


def test_an_incomplete_checkpoint_is_refused(qwen3: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(qwen3, tmp_path / "copy"))
    (copy / "model-00003-of-00005.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is incomplete"):
        verify_layers(copy)


@pytest.mark.parametrize("name", ["DiffusionGemmaForBlockDiffusion", "MuseSparkForConditionalGeneration"])
def test_experts_that_are_tied_or_have_a_norm_of_their_own_are_certified(name: str, tmp_path: Path) -> None:
    family = next(family for family in families() if family.cls.__name__ == name)
    with quiet_transformers():
        build(family).save_pretrained(tmp_path)
    verdict = verify_layers(tmp_path)
    assert verdict.equal and verdict.experts_equal == verdict.experts, "\n".join(verdict.lines)
