"""An expert copied into memory of our own: how it lies there, and how it is read. Whose memory it is: slots.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch

from segmoe.kernel import HUGE
from segmoe.manifest import ALIGNMENT, ExpertParameter, Segment
from segmoe.memory import huge_pages
from segmoe.reader import Reader


def size(segment: Segment) -> int:
    """Bytes of a buffer for an expert, wherever it begins."""
    return sum(_room(part.nbytes) for part in segment.parameters) + ALIGNMENT


def views(segment: Segment, buffer: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters by name, in a buffer of uint8 that they were read into."""
    for part, raw in _places(segment, buffer):
        yield part.name, raw.view(part.dtype).view(part.shape)


def apart(part: ExpertParameter, tensor: torch.Tensor) -> torch.Tensor:
    """A copy of one parameter in memory of its own, in huge pages if it is large."""
    nbytes = part.nbytes + part.address
    buffer = huge_pages(nbytes) if nbytes >= HUGE else torch.empty(nbytes, dtype=torch.uint8)
    return buffer[part.address :].view(part.dtype).view(part.shape).copy_(tensor)


def read(segment: Segment, buffer: torch.Tensor, reader: Reader) -> None:
    """Fill a buffer with an expert, made as the stock model makes it if the files store it in another way."""
    pieces, views = [], []
    for part, raw in _places(segment, buffer):
        if part.recipe is None:
            into = memoryview(cast(Any, raw.numpy()))
            done = 0
            for piece in part.pieces:
                pieces.append(piece)
                views.append(into[done : done + piece.nbytes])
                done += piece.nbytes
        else:
            stored = [torch.empty(piece.nbytes, dtype=torch.uint8) for piece in part.pieces]
            reader.read(part.pieces, [memoryview(cast(Any, tensor.numpy())) for tensor in stored])
            typed = [
                tensor.view(part.dtype).view(source.shape)
                for tensor, source in zip(stored, part.recipe.sources, strict=True)
            ]
            raw.view(part.dtype).view(part.shape).copy_(part.recipe.make(typed))
    reader.read(pieces, views)


def _room(nbytes: int) -> int:
    """Bytes that a parameter takes in a slot, whatever its address modulo ALIGNMENT."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT + ALIGNMENT


def _places(segment: Segment, buffer: torch.Tensor) -> Iterator[tuple[ExpertParameter, torch.Tensor]]:
    """Where in the buffer each parameter's bytes lie: at the address, modulo ALIGNMENT, of the stock model's."""
    start = -buffer.data_ptr() % ALIGNMENT
    for part in segment.parameters:
        begin = start + part.address
        yield part, buffer[begin : begin + part.nbytes]
        start += _room(part.nbytes)
