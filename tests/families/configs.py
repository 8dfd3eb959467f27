"""Tiny configs of every MoE family of transformers, derived from the library's defaults. Comparing is sweep.py.

A config class's default is shrunk field by field: sizes by the field's name, per-layer lists to a few layers that show
each kind of layer, token ids into the small vocabulary. What a family needs beyond that is in NEEDS, and nothing else.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from transformers import PreTrainedModel

VOCABULARY, LAYERS, EXPERTS, TOP_K, HEADS = 160, 4, 4, 2, 4

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 40,
    "d_model": 32,
    "head_dim": 16,
    "v_head_dim": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "qk_head_dim": None,  # the sum of the two, by the config itself
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "num_attention_heads": HEADS,
    "num_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "sliding_window": 8,
    "moe_intermediate_size": 21,
    "num_experts_per_tok": TOP_K,
    "num_experts_per_token": TOP_K,
    "moe_topk": TOP_K,
    "moe_k": TOP_K,
    "top_k_experts": TOP_K,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "moe_num_experts": EXPERTS,
    "n_group": 1,
    "num_expert_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "num_nextn_predict_layers": 0,
}
"""By the exact name of the field; None leaves it to the config."""

PATTERNS: tuple[tuple[str, Any], ...] = (
    (r"intermediate_size$|ffn_dim$|mlp_dim$", 24),
    (r"^(num_hidden_layers|encoder_layers|depth|n_layers)$", LAYERS),
    (r"_heads$|_n_heads$|_num_heads$", HEADS),
    (r"_head_dim$", 16),
    (r"hidden_size$|hidden_dim$", 40),
    (r"^index_topk$", 8),
)
"""By a part of the field's name, where SIZES says nothing."""

EXPERT_FIELD = re.compile(r"experts|moe_intermediate_size")
"""Fields that are set even where the default is None: without them there are no experts."""

ANY_ID = re.compile(r"(token|codec_\w+|bos|eos|pad)_(id|index)$")

_KINDS = ["dense", "sparse", "sparse", "sparse"]
_OMNI_IDS = {"vision_start_token_id": 101, "vision_end_token_id": 102, "audio_end_token_id": 103}

NEEDS: dict[str, dict[str, Any]] = {
    "DeepseekOcr2TextConfig": {"mlp_layer_types": _KINDS, "num_key_value_heads": HEADS},
    "DiffusionGemmaConfig": {"canvas_length": 8},
    "Dots3NoteVisionConfig": {"adapter_in_dim": 40, "adapter_out_dim": 40, "mlp_layer_types": _KINDS},
    "Dots3NoteAudioConfig": {"adapter_input_size": 40, "adapter_out_dim": 40},
    "Ernie4_5_VLMoeTextConfig": {
        "moe_intermediate_size": [21, 13],
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [2, 2, 1]},
    },
    "Gemma4TextConfig": {"enable_moe_block": True},
    "Glm4vMoeTextConfig": {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.5,
            "mrope_section": [1, 1, 1],
        }
    },
    "Glm5NextTextConfig": {"qk_rope_head_dim": 0, "head_dim": 0, "index_kpool": 4},
    "GraniteMoeHybridConfig": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "HunYuanMoEV1Config": {"head_dim": 16},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"] * 2},
    "Mistral4Config": {"qk_nope_head_dim": 8, "head_dim": 16},
    "MistralLarge4TextConfig": {"kv_source_layers": [0, 1, 2, 3]},
    "MuseSparkTextConfig": {"moe_hidden_size": 24},  # experts narrower than the model, as in the released one
    "NemotronHConfig": {"n_groups": 2},
    "Qwen3OmniMoeThinkerConfig": _OMNI_IDS,
    "Qwen3OmniMoeTalkerTextConfig": {"shared_expert_intermediate_size": 24},
    "Qwen3OmniMoeTalkerConfig": {"spatial_merge_size": 2},
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": HEADS,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "ZayaConfig": {"num_experts_per_tok": 1},
}
"""By config class: what a family needs beyond the rules above."""


class Family(NamedTuple):
    """A model class that has experts behind the library's interface."""

    name: str  # model_type
    cls: type[PreTrainedModel]


def is_experts_class(kind: Any) -> bool:
    """Whether a class was decorated by the library's `use_experts_implementation`."""
    return (
        inspect.isclass(kind)
        and hasattr(getattr(kind, "forward", None), "__wrapped__")
        and "experts_forward" in kind.forward.__code__.co_varnames
    )


def families() -> Iterator[Family]:
    """Every class with a head in a module that has an experts class: those that generate, or all if none does."""
    for file in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        if "use_experts_implementation" not in file.read_text():
            continue
        module = importlib.import_module(f"transformers.models.{file.parent.name}.{file.stem}")
        kinds = [kind for kind in vars(module).values() if getattr(kind, "__module__", None) == module.__name__]
        if not any(is_experts_class(kind) for kind in kinds):
            continue
        heads = [
            kind
            for kind in kinds
            if inspect.isclass(kind)
            and issubclass(kind, PreTrainedModel)
            and "For" in kind.__name__
            and "PreTrained" not in kind.__name__
            and kind.config_class is not None
        ]
        unique = {kind.__name__: kind for kind in heads}
        for kind in [kind for kind in unique.values() if kind.can_generate()] or list(unique.values()):
            yield Family(kind.config_class.model_type, kind)


def tiny_config(cls: type[PreTrainedModel]) -> Any:
    """The class's config, shrunk."""
    config = _shrunk(cls.config_class, _Ids())
    config.architectures = [cls.__name__]
    return config


class _Ids:
    """Gives each special token its own id, from the end of the vocabulary."""

    def __init__(self) -> None:
        self._next = VOCABULARY
        self._known: dict[str, int] = {}

    def of(self, name: str) -> int:
        if name not in self._known:
            self._next -= 1
            self._known[name] = self._next
        return self._known[name]


def _shrunk(kind: Any, ids: _Ids) -> Any:
    default = kind()
    values: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    for name, value in default.to_dict().items():
        if name in kind.sub_configs:
            sub = getattr(default, name)
            values[name] = None if sub is None else _shrunk(type(sub), ids).to_dict()
        elif name in values or isinstance(value, bool):
            continue
        elif isinstance(value, int) and ANY_ID.search(name):
            values[name] = ids.of(name)
        else:
            small = _small(name, value, default)
            if small is not None:
                values[name] = small
    if "kv_lora_rank" in values:  # latent attention: no groups, and rotation in a part of its own
        values |= {"num_key_value_heads": HEADS, "head_dim": values["qk_rope_head_dim"]}
    values |= NEEDS.get(kind.__name__, {})
    return kind(**values)


def _small(name: str, value: Any, default: Any) -> Any:
    if name in SIZES:
        return SIZES[name] if isinstance(value, int) or (value is None and EXPERT_FIELD.search(name)) else None
    if isinstance(value, list) and value and len(value) == getattr(default, "num_hidden_layers", None):
        kinds = sorted(set(value), key=lambda kind: value[::-1].index(kind))
        return [kinds[layer % len(kinds)] for layer in range(LAYERS)]
    if not isinstance(value, int):
        return None
    for pattern, size in PATTERNS:
        if re.search(pattern, name):
            return size
    return None
