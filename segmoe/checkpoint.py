"""Where each tensor's bytes lie, read from the safetensors headers and the index. Which belong together is sources.py.

Nothing is believed before it is checked: a shard that the index names must exist, a header must fit its file, each
tensor's range must fit its dtype and shape, and a file must be as long as its header says. The index is the only
truth about which shard holds a tensor; borders cut through layers and through single experts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmoe.errors import CheckpointError

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes per element; formats that are not here (fp8, packed 4-bit) take their size from the header's own range."""

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SAMPLES, SAMPLE_BYTES = 16, 4096
MAX_HEADER_BYTES = 100_000_000
"""The limit that the safetensors format itself sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorLocation:
    """A tensor's bytes in a file."""

    file: Path
    offset: int  # of the first byte, from the start of the file
    nbytes: int
    dtype: str  # as safetensors writes it: BF16, F32, ...
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint folder whose headers were read and found consistent."""

    folder: Path
    tensors: Mapping[str, TensorLocation]
    lost: Mapping[str, str]  # tensors of the index whose shard is missing, and that shard's name
    digest: str
    """sha256 over config, index, headers and SAMPLES pieces of each file's weights: tells trainings, quantizations and
    layouts apart in milliseconds; a change of a few single weights can escape it."""

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(at.nbytes for at in self.tensors.values())


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read a folder's index and headers; raise CheckpointError for what is truncated or inconsistent.

    Shards that are missing are told in `lost`, so that manifest.py can say which experts went with them.
    """
    folder = find_folder(path)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; give the folder of a transformers checkpoint")
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    index = folder / INDEX
    lost: dict[str, str] = {}
    if index.is_file():
        digest.update(index.read_bytes())
        weight_map = _read_index(index)
        lost = {name: shard for name, shard in weight_map.items() if not (folder / shard).is_file()}
        tensors = _from_index(folder, {name: shard for name, shard in weight_map.items() if name not in lost}, digest)
    elif (folder / SINGLE).is_file():
        tensors = _read_header(folder / SINGLE, digest)
    else:
        raise CheckpointError(f"{folder} has neither {INDEX} nor {SINGLE}; download the safetensors files")
    return Checkpoint(folder=folder, tensors=tensors, lost=lost, digest=digest.hexdigest())


def find_folder(path: str | Path) -> Path:
    """The folder that a path or a hub name (`org/name`, in huggingface_hub's local cache; nothing is fetched) means."""
    folder = Path(path)
    if folder.is_dir():
        return folder
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        with contextlib.suppress(LocalEntryNotFoundError, HfHubHTTPError, HFValidationError):
            return Path(snapshot_download(str(path), local_files_only=True))
        raise CheckpointError(f"{path} is neither a folder nor in the hub's local cache; `hf download {path}` gets it")
    raise CheckpointError(f"{folder} is not a folder; give the folder that holds config.json and the shards")


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_bytes())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} is not a safetensors index ({error}); download it again") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} names no tensors; download it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index} places {name} in {shard!r}, which is no file of the folder")
    return weight_map


def _from_index(folder: Path, weight_map: dict[str, str], digest: Any) -> dict[str, TensorLocation]:
    headers = {shard: _read_header(folder / shard, digest) for shard in sorted(set(weight_map.values()))}
    tensors = {}
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise CheckpointError(f"the index places {name} in {shard}, which does not hold it; download both again")
        tensors[name] = headers[shard][name]
    return tensors


def _read_header(file: Path, digest: Any) -> dict[str, TensorLocation]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(f"{file} is truncated or no safetensors file ({size:,} bytes); download it again")
        raw = stream.read(length)
        digest.update(raw)
        for number in range(SAMPLES):
            stream.seek(8 + length + (size - 8 - length) * number // SAMPLES)
            digest.update(stream.read(SAMPLE_BYTES))
    try:
        header = json.loads(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = {name: _location(file, 8 + length, entry) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the header of {file} cannot be read ({error}); download the file again") from None
    for name, location in tensors.items():
        count = ITEM_BYTES.get(location.dtype)
        if count is not None and location.nbytes != count * math.prod(location.shape):
            raise CheckpointError(
                f"the header of {file} gives {name} {location.nbytes:,} bytes, not what its shape needs"
            )
    end = max((location.offset + location.nbytes for location in tensors.values()), default=8 + length)
    if end > size:
        raise CheckpointError(
            f"{file} is truncated: its header promises {end:,} bytes, it holds {size:,}; download it again"
        )
    return tensors


def _location(file: Path, data: int, entry: dict[str, Any]) -> TensorLocation:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    if not 0 <= begin <= end:
        raise ValueError(f"data_offsets {begin}, {end}")
    shape = tuple(int(size) for size in entry["shape"])
    return TensorLocation(file=file, offset=data + begin, nbytes=end - begin, dtype=str(entry["dtype"]), shape=shape)
