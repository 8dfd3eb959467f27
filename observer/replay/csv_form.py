"""Read the public CSV form of a route trace: turn, phase, step, layer, slot, expert, weight, residency, expert_bytes.

Comment lines `# layer=L expert_bytes=N ...` give the sizes. Phase 1 is decode. Without a comment that tells the number
of experts of a layer, it is the highest number seen.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from observer.errors import ObserverError
from observer.replay.trace import Trace
from segmoe.events import ExpertKey

COLUMNS = ("turn", "phase", "step", "layer", "expert")
COMPONENT = "model"
MOST_EXPERTS = 1_000_000  # each has a place in memory, whether it was used or not


def read_csv(path: Path) -> Trace:
    """The whole trace; one pass per step, in which a layer uses its distinct experts in ascending order.

    In this form a prompt's tokens follow one another as steps of their own, however they were batched.
    """
    comments, header, rows = _lines(path)
    names = header.split(",")
    if not set(COLUMNS) <= set(names) or not rows:
        raise ObserverError(f"{path} is no route trace: it needs rows and the columns {', '.join(COLUMNS)}")
    try:
        wanted = np.loadtxt(
            rows, delimiter=",", usecols=[names.index(name) for name in COLUMNS], dtype=np.int64, ndmin=2
        )
    except ValueError as error:
        raise ObserverError(f"{path} cannot be read as a route trace: {error}") from None
    text = "".join(comments)
    if wanted[:, 3:].min() < 0:
        raise ObserverError(f"{path} cannot be read as a route trace: layers and experts count from 0")
    told = re.search(r"\bn_expert=(\d+)", text)
    experts = max(int(told[1]) if told else 0, int(wanted[:, 4].max()) + 1)
    sizes = {int(layer): int(size) for layer, size in re.findall(r"\blayer=(\d+) expert_bytes=(\d+)", text)}
    layers = sorted({*sizes, *np.unique(wanted[:, 3]).tolist()})
    if experts * len(layers) > MOST_EXPERTS:
        raise ObserverError(
            f"{path} cannot be read as a route trace: {len(layers):,} layers of {experts:,} experts are more than "
            f"{MOST_EXPERTS:,}; experts count from 0 in each layer"
        )
    numbers = {layer: index * experts for index, layer in enumerate(layers)}
    number = np.array([numbers[one] for one in wanted[:, 3].tolist()]) + wanted[:, 4]
    passes, first, inverse = np.unique(wanted[:, :3], axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # passes come in the order of the file
    position = np.argsort(order)
    return Trace.of_picks(
        position[inverse.reshape(-1)],
        number,
        tokens=np.ones(len(passes), np.int64),
        is_decode=passes[order, 1] == 1,
        keys=[ExpertKey(COMPONENT, layer, expert) for layer in layers for expert in range(experts)],
        nbytes=np.repeat([sizes.get(layer, 1) for layer in layers], experts),
    )


def _lines(path: Path) -> tuple[list[str], str, list[str]]:
    """Comments, header and rows."""
    comments, header, rows = [], "", []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for line in lines:
                if line.startswith("#"):
                    comments.append(line)
                elif not header:
                    header = line.strip()
                elif line.strip():
                    rows.append(line)
    except (UnicodeDecodeError, OSError) as error:
        why = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise ObserverError(f"{path} cannot be read as a route trace: {why}") from None
    return comments, header, rows
