"""Read a run's own route trace (Parquet, a row for each token and layer) as accesses. The files are trace.py's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from observer.errors import ObserverError
from observer.replay.trace import Trace
from segmoe.events import ExpertKey

SCHEMA = pa.schema(
    [
        ("component", pa.string()),
        ("step", pa.int64()),
        ("phase", pa.string()),
        ("layer", pa.int64()),
        ("position", pa.int64()),
        ("ids", pa.list_(pa.uint16())),
    ]
)


def read_parquet(paths: Sequence[Path], sizes: Mapping[ExpertKey, int] | None = None) -> Trace:
    """All passes of the files; without sizes an expert counts as one byte, and the highest seen is the last."""
    chunks = [_read(path) for path in paths]
    components = sorted({name for chunk in chunks for name in chunk["names"]})
    keys = sorted(sizes) if sizes else _seen(chunks)
    number = {key: index for index, key in enumerate(keys)}
    first = {component: min(key.layer for key in keys if key.component == component) for component in components}
    picks, steps, tokens, decoding = [], [], [], []
    for chunk in chunks:
        for code, component in enumerate(chunk["names"]):
            mine = chunk["component"] == code
            layers = chunk["layer"][mine]
            start = np.zeros(int(layers.max(initial=0)) + 1, np.int64)  # number of a layer's expert 0
            for layer in np.unique(layers).tolist():
                start[layer] = number[ExpertKey(component, layer, 0)]
            ids = chunk["ids"][mine].astype(np.int64) + start[layers][:, None]
            picks.append(ids.reshape(-1))
            steps.append(np.repeat(chunk["step"][mine], ids.shape[1]))
            one_layer = mine & (chunk["layer"] == first[component]) & (chunk["position"] >= 0)
            tokens.append(chunk["step"][one_layer])
            decoding.append(chunk["step"][one_layer & chunk["decode"]])
    passes, index = np.unique(np.concatenate(steps), return_inverse=True)
    counts = np.bincount(np.searchsorted(passes, np.concatenate(tokens)), minlength=len(passes))
    return Trace.of_picks(
        index,
        np.concatenate(picks),
        tokens=counts,
        is_decode=np.isin(passes, np.concatenate(decoding)),
        keys=keys,
        nbytes=np.array([sizes[key] for key in keys] if sizes else np.ones(len(keys)), np.int64),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        table = pq.read_table(path, columns=SCHEMA.names).cast(SCHEMA)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError, KeyError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ObserverError(
            f"{path} is no route trace of a run: {reason}; give a file of `observer run --trace`"
        ) from None
    component = pc.dictionary_encode(table.column("component")).combine_chunks()
    ids = table.column("ids").combine_chunks()
    width: NDArray[Any] = np.diff(ids.offsets.to_numpy())
    if not len(width):
        raise ObserverError(f"{path} holds no picks; record a longer run")
    if width.min() < 1:
        raise ObserverError(f"{path} is no route trace of a run: a token without picks; give a file that is whole")
    # several components pick different numbers of experts: the narrow rows are filled with their last pick
    k = int(width.max())
    flat, offsets = ids.values.to_numpy(), ids.offsets.to_numpy()[:-1]
    column = np.minimum(np.arange(k)[None, :], width[:, None] - 1)
    return {
        "names": component.dictionary.to_pylist(),
        "component": component.indices.to_numpy(),
        "step": table.column("step").to_numpy(),
        "decode": pc.equal(table.column("phase"), "decode").to_numpy(),
        "layer": table.column("layer").to_numpy(),
        "position": table.column("position").to_numpy(),
        "ids": flat[offsets[:, None] + column],
    }


def _seen(chunks: list[dict[str, Any]]) -> list[ExpertKey]:
    """Every expert of every layer that was seen, up to the highest number in its component."""
    found: dict[str, tuple[set[int], int]] = {}
    for chunk in chunks:
        for code, component in enumerate(chunk["names"]):
            mine = chunk["component"] == code
            layers, highest = found.get(component, (set(), 0))
            layers |= set(np.unique(chunk["layer"][mine]).tolist())
            found[component] = (layers, max(highest, int(chunk["ids"][mine].max(initial=0))))
    return [
        ExpertKey(component, layer, expert)
        for component, (layers, highest) in sorted(found.items())
        for layer in sorted(layers)
        for expert in range(highest + 1)
    ]
