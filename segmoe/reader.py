"""Positional reads from a checkpoint's files. Which bytes is manifest.py, where to is slots.py, when is cache.py."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from segmoe.errors import CheckpointError
from segmoe.manifest import Piece


class Reader:
    """Keeps the shards open and reads from them; several threads may use it, since reads carry their offset."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._opening = threading.Lock()

    def read(self, pieces: Sequence[Piece], into: Sequence[memoryview]) -> None:
        """Fill each view with its piece's bytes; raise CheckpointError if a file ends early or cannot be read.

        Pieces that lie one behind the other in a file, as the projections of one expert mostly do, are one read.
        """
        for run in runs(pieces):
            self._read(pieces[run[0]], [into[index][: pieces[index].nbytes] for index in run])

    def _read(self, first: Piece, views: list[memoryview]) -> None:
        offset, left = first.offset, sum(len(view) for view in views)
        try:
            descriptor = self._descriptor(first.file)
            while left:
                count = os.preadv(descriptor, views, offset)
                if count == 0:
                    raise CheckpointError(f"{first.file} ended {left:,} bytes early; was it replaced?")
                offset += count
                left -= count
                while views and count >= len(views[0]):
                    count -= len(views.pop(0))
                if count:
                    views[0] = views[0][count:]
        except OSError as error:
            raise CheckpointError(f"{first.file} cannot be read at byte {offset:,}: {error}") from error

    def _descriptor(self, file: Path) -> int:
        found = self._files.get(file)
        if found is None:
            with self._opening:
                found = self._files.get(file)
                if found is None:
                    found = self._files[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                    if hasattr(os, "posix_fadvise"):  # with readahead, 1.3 to 1.5 times an expert's bytes were read
                        os.posix_fadvise(found, 0, 0, os.POSIX_FADV_RANDOM)
        return found

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])


def runs(pieces: Sequence[Piece]) -> Iterator[list[int]]:
    """Indices of pieces that are neighbours in their file, in the order of the file."""
    run: list[int] = []
    for index in sorted(range(len(pieces)), key=lambda index: pieces[index][:2]):
        piece = pieces[index]
        if run:
            last = pieces[run[-1]]
            if (last.file, last.offset + last.nbytes) != (piece.file, piece.offset):
                yield run
                run = []
        run.append(index)
    if run:
        yield run
