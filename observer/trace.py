"""The raw route trace of a run: Parquet files, a row for each token and layer. Reading them is trace_read.py.

A file is written under another name, synced, renamed, and only then catalogued, in the transaction of the snapshot that
it belongs to: a name in the catalogue is a complete file. What is in the folder and not in the catalogue is left from a
crash and deleted when the run goes on.

Passes are kept apart: `step` counts forward passes, rows of one pass and layer follow each other, and an expert that
several tokens of a pass picked was needed once in it. Padding is routed too, and may need experts that no token does:
rows of padding that pick such a one are kept, with sequence and position -1, so that a replay knows all that was read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from observer.errors import TraceError
from observer.gaps import Gaps
from observer.observation import TextRef
from observer.rows import TraceFile
from observer.state import Arrays, below, under
from segmoe.events import Event, Routed

PHASES: Final = ("prefill", "decode")
FILE_ROWS = 500_000
"""A file is closed after the batch that brings it so many rows; about 10 MB at 8 picks of 128 experts."""

CAP_BYTES = 10 * 2**30
PADDING = -1
OVER_CAP = "trace over the cap"
TEMPORARY = ".part"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """How much of the routing is kept."""

    every: int = 1  # of so many texts, one
    cap_bytes: int = CAP_BYTES  # of all files of the run
    impacts: bool = False  # also 1 - cos(h, h - c) of each pick
    file_rows: int = FILE_ROWS


def trace_folder(db: Path, run_id: int) -> Path:
    """Where the files of a run lie: beside the record."""
    return db.with_name(f"{db.stem}-trace") / str(run_id)


class TraceWriter:
    """Buffers routing and writes it away in whole files; `seal` between batches."""

    def __init__(self, folder: Path, settings: TraceSettings, gaps: Gaps, experts: int) -> None:
        self.folder, self.settings = folder, settings
        self._gaps = gaps
        self._id_type = np.uint8 if experts <= 256 else np.uint16
        self._files, self._bytes, self._rows = 0, 0, 0
        self._ordinals = np.zeros(0, np.int64)  # [rows of the batch]
        self._chunks: dict[str, list[dict[str, NDArray[Any]]]] = {}  # component -> columns; k differs by component

    @property
    def is_full(self) -> bool:
        """Whether there is enough for a file."""
        return self._rows >= self.settings.file_rows

    def begin(self, texts: Sequence[TextRef]) -> None:
        """Announce the batch of the events that follow."""
        self._ordinals = np.array([text.ordinal for text in texts], dtype=np.int64)

    def take(self, event: Event) -> None:
        """Keep the rows of an event that belong to a sampled text, and of padding what a replay needs."""
        if not isinstance(event, Routed) or not len(self._ordinals):
            return
        rows = np.flatnonzero(event.position >= 0)
        rows = rows[self._ordinals[event.sequence[rows]] % self.settings.every == 0]
        padding = np.flatnonzero(event.position < 0)
        if len(padding) and self.settings.every == 1:
            needed = np.isin(event.topk_ids[padding], event.topk_ids[event.position >= 0], invert=True).any(axis=1)
            rows = np.concatenate((rows, padding[needed]))
        if not len(rows):
            return
        if self._bytes >= self.settings.cap_bytes:
            self._gaps.add(OVER_CAP, event.step, len(rows))
            return
        count = len(rows)
        chunk: dict[str, NDArray[Any]] = {
            "step": np.full(count, event.step, np.int32),
            "phase": np.full(count, PHASES.index(event.phase), np.int8),
            "layer": np.full(count, event.layer, np.int16),
            "sequence": np.where(event.position[rows] >= 0, self._ordinals[event.sequence[rows]], PADDING),
            "position": event.position[rows].astype(np.int32),
            "ids": event.topk_ids[rows].astype(self._id_type),
            "weights": event.topk_weights[rows].astype(np.float16),
        }
        if self.settings.impacts and event.contribution is not None:
            chunk["impacts"] = event.contribution.impact()[rows].astype(np.float32)
        self._chunks.setdefault(event.component, []).append(chunk)
        self._rows += count

    def seal(self, *, rest: bool = False) -> tuple[TraceFile, ...]:
        """Write a file if there is enough for one, or if the rest is wanted too; return what to catalogue."""
        if not self._rows or not (rest or self.is_full):
            return ()
        table = _table({component: _joined(chunks) for component, chunks in self._chunks.items()})
        file = self._write(table)
        self._files, self._bytes, self._rows, self._chunks = self._files + 1, self._bytes + file.bytes, 0, {}
        return (file,)

    def state(self) -> Arrays:
        """Return what is buffered and how many files there are."""
        arrays: Arrays = {"files": np.array(self._files), "bytes": np.array(self._bytes)}
        for component, chunks in self._chunks.items():
            arrays |= under(f"rows/{component}", _joined(chunks))
        return arrays

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state."""
        self._files, self._bytes = int(state["files"]), int(state["bytes"])
        rows = below("rows", state)
        self._chunks = {name: [below(name, rows)] for name in dict.fromkeys(key.rsplit("/", 1)[0] for key in rows)}
        self._rows = sum(len(chunks[0]["step"]) for chunks in self._chunks.values())

    def delete_orphans(self, catalogued: Collection[str]) -> None:
        """Delete what a crash left in the folder."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name not in catalogued:
                    path.unlink()

    def _write(self, table: Any) -> TraceFile:
        name = f"{self._files:06}.parquet"
        path = self.folder / (name + TEMPORARY)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                pq.write_table(table, file, compression="zstd", use_dictionary=["phase", "component"])
                file.flush()
                os.fsync(file.fileno())
            content = path.read_bytes()
            path.rename(self.folder / name)
            _sync_folder(self.folder)
        except OSError as error:
            raise TraceError(
                path, f"cannot be written ({error.strerror or error}); make room, then start it again"
            ) from None
        steps = table.column("step").to_numpy()
        first, last = int(steps.min()), int(steps.max())
        return TraceFile(self._files, name, first, last, len(steps), len(content), hashlib.sha256(content).hexdigest())


def _joined(chunks: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _table(components: Mapping[str, Mapping[str, NDArray[Any]]]) -> Any:
    """Return an Arrow table of all components in the order of their passes."""
    tables = []
    for component, columns in components.items():
        arrays: dict[str, Any] = {}
        for name, values in columns.items():
            if values.ndim == 2:
                offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
                arrays[name] = pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))
            elif name == "phase":
                arrays[name] = pa.DictionaryArray.from_arrays(values, list(PHASES))
            else:
                arrays[name] = pa.array(values)
        label = pa.DictionaryArray.from_arrays(np.zeros(len(columns["step"]), np.int8), [component])
        tables.append(pa.table({"component": label, **arrays}))
    if len(tables) == 1:
        return tables[0]
    table = pa.concat_tables(tables).unify_dictionaries()
    return table.take(np.argsort(table.column("step").to_numpy(), kind="stable"))


def _sync_folder(folder: Path) -> None:
    """Make a rename last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
