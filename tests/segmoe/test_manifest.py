"""Layouts that need more than a copy of bytes, and those that are refused. Damage is test_checkpoint.py."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter

import segmoe
from segmoe.building import read_config
from segmoe.checkpoint import open_checkpoint
from segmoe.conversion import Recipe, Source
from segmoe.errors import CheckpointError, Unsupported
from segmoe.locating import build_manifest
from tests import tiny
from tests.families.configs import Family
from tests.families.sweep import EXACT, build, compare


def family(name: str) -> Family:
    cls = getattr(transformers, name)
    return Family(cls.config_class.model_type, cls)


def manifest(folder: Path):
    return build_manifest(open_checkpoint(folder), read_config(folder))


@pytest.fixture
def copy(qwen3: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(qwen3, tmp_path / "copy"))
    for shard in folder.glob("model-*"):
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    return folder


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def weights(qwen3: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for shard in sorted(qwen3.glob("model-*.safetensors")) for name, tensor in load_file(shard).items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_transposed_stacks_as_on_the_hub_are_exact(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(family("Qwen3VLMoeForConditionalGeneration")).to(dtype)
    model.save_pretrained(tmp_path)
    direct = manifest(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    stacks = [name for name in tensors if ".experts." in name]
    rewrite(tmp_path, tensors | {name: tensors[name].transpose(1, 2).contiguous() for name in stacks})
    converted = manifest(tmp_path)
    assert all(part.recipe is None for segment in direct.experts.values() for part in segment.parameters)
    assert all(part.recipe for segment in converted.experts.values() for part in segment.parameters)
    assert direct.experts.keys() == converted.experts.keys() and len(stacks) == 8
    outcome = compare(model, tmp_path)
    assert outcome.status == EXACT, outcome


def test_two_experts_modules_of_a_layer_are_told_apart(tmp_path: Path) -> None:
    build(family("Ernie4_5_VLMoeForConditionalGeneration")).save_pretrained(tmp_path)
    found = manifest(tmp_path)
    assert {(module.component, module.root) for module in found.modules} == {
        ("model.text_moe", "model"),
        ("model.vision_moe", "model"),
    }
    assert len(found.experts) == 2 * 2 * 4
    text, vision = (
        {m.stack: m.block for m in found.modules if m.component.endswith(kind)} for kind in ("text_moe", "vision_moe")
    )
    assert text == vision and list(text) == ["model.language_model"]


def test_what_is_not_stacked_over_experts_stays_in_the_model(tmp_path: Path) -> None:
    model = tiny.build("Qwen3Moe")
    tiny.save(model, tmp_path)
    left = {name for name, _ in segmoe.load(tmp_path, experts=2).named_parameters()}
    assert left == {name for name, _ in model.named_parameters() if ".experts." not in name}


def test_tied_experts_are_read_from_where_they_are_tied_to(tmp_path: Path) -> None:
    build(family("DiffusionGemmaForBlockDiffusion")).save_pretrained(tmp_path)
    found = manifest(tmp_path)
    assert {module.component for module in found.modules} == {"model.encoder", "model.decoder"}
    by_place = {key: segment.parameters for key, segment in found.experts.items()}
    assert all(by_place[key._replace(component="model.decoder")] == parts for key, parts in by_place.items())


def test_quantized_checkpoints_are_refused(qwen3: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(qwen3, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="is quantized; only fp32, fp16 and bf16"):
        segmoe.load(folder)


def test_experts_stored_in_eight_bits_are_refused(copy: Path, weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    rewrite(copy, weights | {name: weights[name].to(torch.float8_e4m3fn)})
    with pytest.raises(Unsupported, match="down_proj of expert 3 is stored as F8_E4M3; only F32, F16 and BF16"):
        segmoe.load(copy)


def test_an_expert_in_two_dtypes_is_refused(copy: Path, weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    rewrite(copy, weights | {name: weights[name].bfloat16()})
    with pytest.raises(CheckpointError, match="gate_up_proj of expert 3 mixes BF16 and F32"):
        segmoe.load(copy)


def test_experts_in_another_dtype_than_the_model_are_refused(copy: Path, weights: dict[str, torch.Tensor]) -> None:
    rewrite(copy, {name: tensor.half() if ".experts." in name else tensor for name, tensor in weights.items()})
    with pytest.raises(Unsupported, match=r"stores experts as .*float16.*, but its config says torch\.float32"):
        segmoe.load(copy)


def test_an_expert_of_another_shape_is_refused(copy: Path, weights: dict[str, torch.Tensor]) -> None:
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    rewrite(copy, weights | {name: weights[name][:-1].contiguous()})
    with pytest.raises(
        CheckpointError, match=r"down_proj of expert 3 has shape \(32, 21\), the model needs \(33, 21\)"
    ):
        segmoe.load(copy)


def test_a_stack_of_too_few_experts_is_refused(tmp_path: Path) -> None:
    tiny.save(tiny.build("Qwen3Moe"), tmp_path, "stacked")
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj"
    rewrite(tmp_path, tensors | {name: tensors[name][:-1].contiguous()})
    with pytest.raises(CheckpointError, match=r"has shape .*, the model needs 8 experts"):
        segmoe.load(tmp_path)


def recipe(converter: WeightConverter, *sources: Source) -> Recipe:
    target = "model.layers.0.mlp.experts.w"
    return Recipe(
        converter=converter,
        config=None,
        parameter=target,
        first=target,
        shapes={target: (6, 4)},
        sources=sources,
    )


def test_a_conversion_that_treats_experts_alike_is_run_on_one() -> None:
    converter = WeightConverter(["experts.a", "experts.b"], "experts.w", [Concatenate(dim=1)])
    found = recipe(converter, Source("experts.a", (2, 4), True), Source("experts.b", (4, 4), True))
    assert found.trial() == "converted"
    a, b = torch.arange(8.0).view(2, 4), torch.arange(16.0).view(4, 4)
    assert torch.equal(found.make([a, b]), torch.cat([a, b]))


def test_a_chain_over_tensors_of_single_experts_is_run_on_one() -> None:
    converter = WeightConverter("experts.*.a", "experts.w", [MergeModulelist(dim=0), Transpose(1, 2)])
    found = recipe(converter, Source("experts.*.a", (4, 6), False))
    assert found.trial() == "converted"
    a = torch.arange(24.0).view(4, 6)
    assert torch.equal(found.make([a]), a.T)


@pytest.mark.parametrize(
    "operation, shape",
    [(Transpose(0, 1), (6, 4)), (Concatenate(dim=0), (6, 4)), (Transpose(1, 2), (6, 4))],
    ids=["mixes experts", "needs two sources", "gives another shape"],
)
def test_a_conversion_that_one_expert_cannot_have_alone_is_refused(operation, shape: tuple[int, int]) -> None:
    sources = [Source("experts.a", shape, True)]
    if isinstance(operation, Concatenate):
        sources.append(Source("experts.b", shape, True))
    converter = WeightConverter([source.pattern for source in sources], "experts.w", [operation])
    with pytest.raises(Unsupported, match="cannot be done expert by expert") as refusal:
        recipe(converter, *sources).trial()
    assert type(operation).__name__ in str(refusal.value)


def test_experts_outside_numbered_layers_are_refused(qwen3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    class Flat(transformers.Qwen3MoeForCausalLM):
        def __init__(self, config) -> None:
            super().__init__(config)
            self.model = nn.Module()
            self.model.experts = Qwen3MoeExperts(config)

    monkeypatch.setattr(transformers, "Qwen3MoeForCausalLM", Flat)
    with pytest.raises(Unsupported, match=r"the experts at model\.experts belong to no numbered layer"):
        manifest(qwen3)
