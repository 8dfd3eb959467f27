"""Small seeded MoE checkpoints of several families and layouts, written to a folder. No trained weights here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {
        "head_dim": 8,
        "hidden_size": 33,
        "moe_intermediate_size": 21,
        "num_experts": 8,
        "num_experts_per_tok": 3,
    },
    "Qwen2Moe": {
        "moe_intermediate_size": 20,
        "shared_expert_intermediate_size": 24,
        "num_experts": 8,
        "num_experts_per_tok": 3,
    },
    "Mixtral": {"num_local_experts": 8, "num_experts_per_tok": 3},
    "Olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
}


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 1, **changes: Any) -> Any:
    """A model with random weights, large enough that routing and logits differ from token to token."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**COMMON | FAMILIES[family] | changes)
    model = getattr(transformers, f"{family}ForCausalLM")._from_config(config, experts_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3) if parameter.dim() > 1 else parameter.normal_(mean=1.0, std=0.1)
    model.tie_weights()
    return model.to(dtype).eval()


def save(model: Any, folder: Path, layout: str = "per-expert", shards: int = 1) -> Path:
    """Write the hub's layout (a tensor per expert and projection) or the stacked one, cut into `shards`."""
    model.save_pretrained(folder, save_original_format=layout == "per-expert")
    file = folder / "model.safetensors"
    if shards > 1:
        from safetensors.torch import load_file

        tensors = load_file(file)
        file.unlink()
        write_shards(tensors, folder, shards)
    return folder


def write_shards(tensors: dict[str, torch.Tensor], folder: Path, shards: int) -> None:
    """Cut tensors, in their order, into shards with an index."""
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({key: tensors[key] for key in part}, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


class RecordingSink:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def emit(self, event: Any, /) -> None:
        """Append it."""
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if type(event) is kind]
