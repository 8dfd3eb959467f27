"""Positional reads from a checkpoint's files. Which bytes is manifest.py, where to is slots.py, when is cache.py."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from segmoe.errors import CheckpointError
from segmoe.manifest import Piece


class OpenFiles:
    """Descriptors by file, opened when they are first asked for; several threads may ask."""

    def __init__(self, opened: Callable[[Path], int]) -> None:
        self._opened = opened
        self._files: dict[Path, int] = {}
        self._opening = threading.Lock()

    def __getitem__(self, file: Path) -> int:
        if file not in self._files:
            with self._opening:
                if file not in self._files:
                    self._files[file] = self._opened(file)
        return self._files[file]

    def close(self) -> None:
        """Close all that were opened; who asks again gets new ones."""
        while self._files:
            descriptor = self._files.popitem()[1]
            if descriptor >= 0:
                os.close(descriptor)


class Reader:
    """Keeps the shards open and reads from them; several threads may use it, since reads carry their offset."""

    def __init__(self) -> None:
        self._files = OpenFiles(_open)

    def read(self, pieces: Sequence[Piece], into: Sequence[memoryview]) -> None:
        """Fill each view with its piece's bytes; raise CheckpointError if a file ends early or cannot be read.

        Pieces that lie one behind the other in a file, as the projections of one expert mostly do, are one read.
        """
        for run in runs(pieces):
            self._read(pieces[run[0]], [into[index][: pieces[index].nbytes] for index in run])

    def _read(self, first: Piece, views: list[memoryview]) -> None:
        offset, left = first.offset, sum(len(view) for view in views)
        try:
            descriptor = self._files[first.file]
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

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        self._files.close()


def _open(file: Path) -> int:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    if hasattr(os, "posix_fadvise"):  # with readahead, 1.3 to 1.5 times an expert's bytes were read
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    return descriptor


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
