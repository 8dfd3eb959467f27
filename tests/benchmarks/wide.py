"""A checkpoint of Qwen3-30B-A3B's width and few layers, with seeded random weights, in the hub's layout.

    python -m tests.benchmarks.wide FOLDER [--layers 3] [--small]

Hidden size 2048, 32 query and 4 key heads of 128, 128 experts of 768, top-8, bf16, one tensor per expert and
projection, packed greedily into shards of 5 GB. A token costs per layer what it costs there. The vocabulary is the real
one's share, 151,936 x layers / 48, so that the output head weighs beside the layers what it weighs in the whole model;
ids are random and no tokenizer is needed. Weights are normal with a variance of 1 / fan-in, embeddings of 1, so that
the state neither dies out nor explodes and routers spread their picks: for a cache this is the worst case, since real
text uses some experts more than others. Written tensor by tensor, each from the seed of its own name.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import click
import torch
import transformers

from tests.benchmarks.hub import INDEX, hub_tensors, shards, write_index

LAYERS, REAL_LAYERS, REAL_VOCABULARY = 3, 48, 151_936


def config(layers: int = LAYERS) -> Any:
    """The published shape with fewer layers and as much less vocabulary."""
    return transformers.Qwen3MoeConfig(
        vocab_size=REAL_VOCABULARY * layers // REAL_LAYERS,
        hidden_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
        architectures=["Qwen3MoeForCausalLM"],
        dtype="bfloat16",
    )


def small(layers: int = 2) -> Any:
    """The same in a size for tests: 2 layers of 32 experts of 24 KB."""
    shape = config(layers)
    shape.update(
        {
            "vocab_size": 256,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 128,
            "moe_intermediate_size": 64,
            "num_experts": 32,
        }
    )
    return shape


def weights(name: str, shape: torch.Size) -> torch.Tensor:
    """The tensor of this name, always the same."""
    if name.endswith("norm.weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    std = 1.0 if "embed_tokens" in name else shape[-1] ** -0.5
    return (torch.randn(shape, generator=generator) * std).bfloat16()


def write(folder: Path, settings: Any) -> None:
    """Write the folder, unless it is whole already."""
    if (folder / INDEX).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(folder)
    written = list(shards(hub_tensors(transformers.Qwen3MoeForCausalLM, settings), folder))
    for shard in written:
        with shard.file.open("wb") as stream:
            stream.write(shard.header)
            for name, tensor in shard.tensors.items():
                stream.write(weights(name, tensor.shape).view(torch.uint8).numpy().data)
    write_index(written, folder)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layers", default=LAYERS, show_default=True, help="Layers, of 1.2 GB each.")
@click.option("--small", "is_small", is_flag=True, help="A size for tests.")
def main(folder: Path, layers: int, is_small: bool) -> None:
    """Write the checkpoint."""
    write(folder, small() if is_small else config(layers))
    nbytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    click.echo(f"{folder}: {nbytes / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
