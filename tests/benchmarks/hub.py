"""A model's tensors as they lie on the hub: names, greedy packing into shards, headers and index. No weights here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers.core_model_loading import dot_natural_key, revert_weight_conversion

SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"


class Shard(NamedTuple):
    """One file to be."""

    file: Path
    header: bytes  # with its own length in front
    tensors: dict[str, torch.Tensor]  # on the meta device, in the order of their bytes
    nbytes: int  # header included


def hub_tensors(cls: Any, config: Any) -> dict[str, torch.Tensor]:
    """Names and shapes as on the hub, on the meta device: the library's own mapping, reversed, in natural order."""
    with torch.device("meta"):
        twin = cls._from_config(config, dtype=torch.bfloat16)
    state = revert_weight_conversion(twin, twin.state_dict())
    return dict(sorted(state.items(), key=lambda item: dot_natural_key(item[0])))


def shards(tensors: dict[str, torch.Tensor], folder: Path) -> Iterator[Shard]:
    """Pack bf16 tensors in their order, each shard as full as it gets; a border falls where it falls."""
    packed: list[dict[str, torch.Tensor]] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if used + 2 * tensor.numel() > SHARD_BYTES:
            packed.append({})
            used = 0
        packed[-1][name] = tensor
        used += 2 * tensor.numel()
    for number, part in enumerate(packed, start=1):
        entries, end = {}, 0
        for name, tensor in part.items():
            begin, end = end, end + 2 * tensor.numel()
            entries[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        file = folder / f"model-{number:05}-of-{len(packed):05}.safetensors"
        yield Shard(file, len(header).to_bytes(8, "little") + header, part, 8 + len(header) + end)


def write_index(written: list[Shard], folder: Path) -> None:
    """Say which shard holds which tensor. Write it last: a folder that has it is whole."""
    weight_map = {name: shard.file.name for shard in written for name in shard.tensors}
    total = sum(2 * tensor.numel() for shard in written for tensor in shard.tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
