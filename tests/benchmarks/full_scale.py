"""A checkpoint of Qwen3-Omni-30B-A3B's true shape in sparse files, surveyed and run.

    python -m tests.benchmarks.full_scale FOLDER [--forward] [--experts 512] [--without 7]

15 shards, 28,010 tensors, 35,259,818,545 parameters, 70.5 GB in apparent size and a few MB on disk: real headers, all
weights zero. Tensors are packed into 5 GB shards in the order of their names, so borders fall where they fall. With
--without, a shard is left out, and what the survey then misses is compared with what the shard held.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import click
import torch
import transformers

import segmoe
from segmoe.survey import survey
from segmoe.units import format_bytes
from tests.benchmarks.hub import hub_tensors, shards, write_index

TENSORS, PARAMETERS = 28_010, 35_259_818_545


def config() -> Any:
    """The published shape: every value that differs from the library's defaults."""
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [24, 20, 20],
        "mrope_interleaved": True,
    }
    thinker = {
        "vocab_size": 152064,
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 768,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "max_position_embeddings": 65536,
        "rope_parameters": rope,
    }
    talker = {
        "vocab_size": 3072,
        "hidden_size": 1024,
        "num_hidden_layers": 20,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 2048,
        "moe_intermediate_size": 384,
        "shared_expert_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 6,
        "norm_topk_prob": True,
        "rope_parameters": rope,
    }
    return transformers.Qwen3OmniMoeConfig(
        thinker_config={
            "text_config": thinker,
            "audio_config": {"output_dim": 2048},
            "vision_config": {"out_hidden_size": 2048},
        },
        talker_config={
            "text_config": talker,
            "code_predictor_config": {"num_code_groups": 16},
            "num_code_groups": 16,
            "spatial_merge_size": 2,
            "thinker_hidden_size": 2048,
            "speaker_id": {"ethan": 0},
        },
        code2wav_config={},
        architectures=["Qwen3OmniMoeForConditionalGeneration"],
        dtype="bfloat16",
    )


def write(folder: Path) -> None:
    """Pack greedily, write the headers, leave the rest of each file a hole."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = hub_tensors(transformers.Qwen3OmniMoeForConditionalGeneration, config())
    assert len(tensors) == TENSORS and sum(t.numel() for t in tensors.values()) == PARAMETERS
    written = list(shards(tensors, folder))
    for shard in written:
        with shard.file.open("wb") as stream:
            stream.write(shard.header)
            stream.truncate(shard.nbytes)
    write_index(written, folder)
    config().save_pretrained(folder)


def forward(folder: Path, experts: int) -> None:
    """One pass of the 48-layer thinker at full width, and the memory that it took."""
    settings = json.loads((folder / "config.json").read_text())
    thinker = folder / "thinker"
    thinker.mkdir(exist_ok=True)
    (thinker / "config.json").write_text(
        json.dumps(settings["thinker_config"] | {"architectures": ["Qwen3OmniMoeThinkerForConditionalGeneration"]})
    )
    for file in folder.glob("model*"):
        (thinker / file.name).unlink(missing_ok=True)
        (thinker / file.name).symlink_to(file.resolve())
    found = survey(thinker)
    began = time.perf_counter()
    model = segmoe.load(thinker, experts=experts)
    opened = time.perf_counter()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[1, 2, 3, 4]]), use_cache=False).logits
    done = time.perf_counter()
    in_memory = found.non_expert_bytes + experts * found.components[0].expert_bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    click.echo(f"opened in {opened - began:.1f} s, one pass {tuple(logits.shape)} in {done - opened:.1f} s")
    click.echo(f"{model.segmoe.cache.counters}, {len(model.segmoe.cache)} experts in memory of at most {experts}")
    click.echo(f"other weights + budget {format_bytes(in_memory)}, peak resident {format_bytes(peak)}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--forward", "run_forward", is_flag=True, help="Run one pass of the thinker (needs about 13 GiB).")
@click.option("--experts", default=512, show_default=True, help="Experts in memory in that pass.")
@click.option("--without", type=int, help="Leave this shard out of the survey.")
def main(folder: Path, run_forward: bool, experts: int, without: int | None) -> None:
    """Write the folder if it is not there, survey it, and run it if asked to."""
    if not (folder / "config.json").exists():
        write(folder)
    hidden = []
    if without is not None:
        hidden = [(file, file.with_suffix(".hidden")) for file in folder.glob(f"model-{without:05}-of-*.safetensors")]
    for file, aside in hidden:
        file.rename(aside)
    try:
        began = time.perf_counter()
        found = survey(folder, budget="8GiB")
        took = time.perf_counter() - began
    finally:
        for file, aside in hidden:
            aside.rename(file)
    head, tail = found.lines[:8], found.lines[8:]
    left_out = [f"... {len(tail) - 4:,} lines ..."] if len(tail) > 4 else []
    click.echo("\n".join([*head, *left_out, *tail[-4:]]))
    apparent = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    on_disk = sum(file.stat().st_blocks * 512 for file in folder.glob("*.safetensors"))
    click.echo(f"surveyed in {took:.1f} s; {apparent / 1e9:.1f} GB apparent, {format_bytes(on_disk)} on disk")
    if run_forward:
        forward(folder, experts)


if __name__ == "__main__":
    main()
