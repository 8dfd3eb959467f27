"""Write the trained model as the package ships it: bf16, hub layout, awkward shards, and the held-out text.

    python -m segmoe.embedded.export --train DIR [--out segmoe/embedded]

The shards are cut in the middle of things on purpose: one border runs through layer 1 and one through a single expert
(gate in one file, up and down in the next), since that is where readers that trust anything but the index lose experts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast, Qwen3MoeForCausalLM

from segmoe.embedded.texts import CONTEXTS, Document, documents
from segmoe.embedded.train import config

CORPUS_BYTES, VALIDATION_BYTES = 80_000, 60_000
"""Per context: what two slow cores score in a minute, and what is kept to test the outcome."""

TEXT_TOKENS = 240
CUTS = ("model.layers.1.mlp.experts.9.gate_proj.weight", "model.layers.3.mlp.experts.20.gate_proj.weight")
"""The last tensor of the first and of the second shard."""


def hub_tensors(model: Qwen3MoeForCausalLM) -> dict[str, torch.Tensor]:
    """The weights by their names on the hub: one tensor per expert and projection."""
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied to the embedding
        value = parameter.to(torch.bfloat16)
        prefix, _, stacked = name.rpartition(".")
        if stacked == "gate_up_proj":
            for expert, both in enumerate(value):
                gate, up = both.chunk(2)
                tensors[f"{prefix}.{expert}.gate_proj.weight"] = gate.contiguous()
                tensors[f"{prefix}.{expert}.up_proj.weight"] = up.contiguous()
        elif stacked == "down_proj":
            for expert, down in enumerate(value):
                tensors[f"{prefix}.{expert}.down_proj.weight"] = down.contiguous()
        else:
            tensors[name] = value.contiguous()
    return dict(sorted(tensors.items(), key=lambda item: _place(item[0])))


def _place(name: str) -> tuple[object, ...]:
    parts = [part.rjust(4, "0") if part.isdigit() else part for part in name.split(".")]
    order = {"gate_proj": "0", "up_proj": "1", "down_proj": "2"}
    return (not name.startswith("model.embed"), *(order.get(part, part) for part in parts))


def write_shards(tensors: dict[str, torch.Tensor], out: Path) -> None:
    """Cut behind CUTS and write the shards with their index."""
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, value in tensors.items():
        shards[-1][name] = value
        if name in CUTS:
            shards.append({})
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, out / file, metadata={"format": "pt"})
        (out / file).chmod(0o644)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(value.nbytes for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def excerpts(held_out: list[Document], tokenizer: PreTrainedTokenizerFast, budget: int) -> list[dict[str, str]]:
    """Excerpts of whole lines and at most TEXT_TOKENS tokens, taken in turn from all documents until `budget` bytes."""
    queues = [_pieces(document, tokenizer) for document in held_out]
    chosen: list[dict[str, str]] = []
    used = number = 0
    while any(len(queue) > number for queue in queues):
        for document, queue in zip(held_out, queues, strict=True):
            if number < len(queue) and used + len(queue[number].encode()) <= budget:
                text = queue[number]
                chosen.append({"id": f"{document.id}#{number}", "context": document.context, "text": text})
                used += len(text.encode())
        number += 1
    return chosen


def _pieces(document: Document, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    pieces, current, tokens = [], "", 0
    for line in document.text.splitlines(keepends=True):
        count = len(tokenizer(line)["input_ids"])
        if current and tokens + count > TEXT_TOKENS:
            pieces.append(current)
            current, tokens = "", 0
        current, tokens = current + line, tokens + count
    pieces.append(current)
    return [piece for piece in pieces if len(piece) >= 100 and len(tokenizer(piece)["input_ids"]) <= 256]


def write_corpora(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Split the held-out documents between corpus and validation, and interleave the contexts."""
    by_context: dict[str, list[Document]] = {context: [] for context in CONTEXTS}
    for document in documents():
        if document.held_out:
            by_context[document.context].append(document)
    for file, budget, offset in (("corpus.jsonl", CORPUS_BYTES, 0), ("validation.jsonl", VALIDATION_BYTES, 1)):
        columns = [
            excerpts([d for i, d in enumerate(by_context[c]) if (i % 3 == 0) == (offset == 1)], tokenizer, budget)
            for c in CONTEXTS
        ]
        places = [(row / len(column), item) for column in columns for row, item in enumerate(column)]
        places.sort(key=lambda place: place[0])
        lines = [json.dumps(item, ensure_ascii=False) for _, item in places]
        (out / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


@click.command()
@click.option("--train", type=click.Path(path_type=Path, exists=True), required=True, help="What train.py wrote.")
@click.option("--out", type=click.Path(path_type=Path), default=Path(__file__).parent, show_default=True)
def main(train: Path, out: Path) -> None:
    """Write model, tokenizer and held-out texts."""
    state = torch.load(train / "state.pt", map_location="cpu", weights_only=True)
    model = Qwen3MoeForCausalLM(config())
    model.load_state_dict(state["model"])
    folder = out / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_shards(hub_tensors(model), folder)
    settings = model.config
    settings.dtype = torch.bfloat16
    settings.architectures = ["Qwen3MoeForCausalLM"]
    settings.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(train)
    tokenizer.save_pretrained(folder)
    write_corpora(tokenizer, out)
    tokens = state["step"] * np.prod([16, 256])
    click.echo(f"{folder}: step {state['step']} of {state['steps']}, {tokens / 1e6:.1f} M tokens")


if __name__ == "__main__":
    main()
