"""The families that matter most and one of each kind of layout; `python -m tests.families.sweep` runs them all."""

from pathlib import Path

import pytest
import torch
import transformers

import segmoe
from tests.families import sweep
from tests.families.configs import Family
from tests.families.sweep import DIFFERS, EXACT, build, compare, outcomes

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # diffusion_gemma's generate

ALL = ("fp32 hub", "fp32 stacked", "bf16 hub", "bf16 stacked")
ONE_LAYOUT = ("fp32 hub", "bf16 hub")

CLASSES = {
    "Qwen3MoeForCausalLM": ALL,
    "Qwen2MoeForCausalLM": ALL,
    "MixtralForCausalLM": ALL,
    "OlmoeForCausalLM": ALL,
    "DeepseekV3ForCausalLM": ALL,
    "GptOssForCausalLM": ONE_LAYOUT,  # stacked, with biases
    "Qwen3VLMoeForConditionalGeneration": ONE_LAYOUT,
    "Qwen3OmniMoeThinkerForConditionalGeneration": ALL,
    "Qwen3NextForCausalLM": ALL,  # linear attention beside full attention
    "GraniteMoeForCausalLM": ALL,
    "PhimoeForCausalLM": ALL,
    "Glm4MoeForCausalLM": ALL,
    "JambaForCausalLM": ALL,  # state space layers, experts in every other layer
    "NemotronHForCausalLM": ALL,  # no gate
    "Inkling2ForCausalLM": ALL,  # interleaved on the hub: the library's conversion, expert by expert
    "Ernie4_5_VLMoeForConditionalGeneration": ALL,  # two experts modules in a layer, dealt from one list
    "DiffusionGemmaForBlockDiffusion": ONE_LAYOUT,  # encoder and decoder share their experts
    "OpenAIPrivacyFilterForTokenClassification": ONE_LAYOUT,  # does not generate
}


def family(name: str) -> Family:
    cls = getattr(transformers, name)
    return Family(cls.config_class.model_type, cls)


@pytest.mark.parametrize("name", CLASSES)
def test_a_family_is_exact_in_each_dtype_and_layout(name: str) -> None:
    found = dict(outcomes(family(name)))
    assert {what: outcome.status for what, outcome in found.items()} == dict.fromkeys(CLASSES[name], EXACT), found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["Qwen3MoeForCausalLM", "MixtralForCausalLM", "GptOssForCausalLM"])
def test_beam_search_is_exact(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(family(name)).to(dtype)
    model.save_pretrained(tmp_path)
    outcome = compare(model, tmp_path, num_beams=3)
    assert outcome.status == EXACT, outcome


def test_a_difference_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family("MixtralForCausalLM"))
    model.save_pretrained(tmp_path / "stock")
    with torch.no_grad():
        model.model.layers[3].mlp.experts.down_proj[2, 0, 0] += 0.25
    model.save_pretrained(tmp_path / "changed")
    load = segmoe.load
    monkeypatch.setattr(sweep.segmoe, "load", lambda folder, **settings: load(tmp_path / "changed", **settings))
    outcome = compare(model, tmp_path / "stock")
    assert outcome.status == DIFFERS
    assert "component='model', layer=3, expert=2" in outcome.detail
