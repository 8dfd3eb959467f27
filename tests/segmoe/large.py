"""Experts of a size that is mapped."""

from dataclasses import replace
from pathlib import Path

import torch

from segmoe.events import ExpertKey
from segmoe.manifest import ExpertParameter, Piece, Segment

SHAPE = (1024, 512)
SIZE = 2 * SHAPE[0] * SHAPE[1]
HEADER = 200  # bytes before the first expert: 8 modulo 64, as no copy would lie


def write(file: Path, count: int) -> dict[ExpertKey, Segment]:
    """Experts of 1 MiB, each filled with its number, in two pieces side by side."""
    numbers = [torch.full(SHAPE, float(expert), dtype=torch.bfloat16) for expert in range(count)]
    file.write_bytes(b"x" * HEADER + b"".join(number.view(torch.int16).numpy().tobytes() for number in numbers))
    found = {}
    for expert in range(count):
        key = ExpertKey("model", 0, expert)
        half = SIZE // 2
        pieces = (Piece(file, HEADER + expert * SIZE, half), Piece(file, HEADER + expert * SIZE + half, SIZE - half))
        part = ExpertParameter(name="w", dtype=torch.bfloat16, shape=SHAPE, nbytes=SIZE, address=0, pieces=pieces)
        found[key] = Segment(key=key, parameters=(part,), nbytes=SIZE)
    return found


def moved(segments: dict[ExpertKey, Segment], file: Path) -> dict[ExpertKey, Segment]:
    """The same experts in a copy of their file."""
    old = next(iter(segments.values())).parameters[0].pieces[0].file
    file.write_bytes(old.read_bytes())
    found = {}
    for key, segment in segments.items():
        (part,) = segment.parameters
        pieces = tuple(piece._replace(file=file) for piece in part.pieces)
        found[key] = Segment(key=key, parameters=(replace(part, pieces=pieces),), nbytes=SIZE)
    return found
