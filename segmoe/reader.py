"""Positional reads of one expert straight into its slot. Which bytes is manifest.py, when is cache.py."""

from __future__ import annotations

import os
from pathlib import Path

from segmoe.errors import CheckpointError
from segmoe.manifest import Piece


class Reader:
    """Keeps the shards open and reads from them; safe to use from several threads, since reads carry their offset."""

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}

    def read(self, piece: Piece, into: memoryview) -> None:
        """Fill `into` with the piece's bytes; raise CheckpointError if the file ends early or cannot be read."""
        done = 0
        try:
            descriptor = self._descriptor(piece.file)
            while done < piece.nbytes:
                count = os.preadv(descriptor, [into[done : piece.nbytes]], piece.offset + done)
                if count == 0:
                    raise CheckpointError(f"{piece.file} ended {piece.nbytes - done:,} bytes early; was it replaced?")
                done += count
        except OSError as error:
            raise CheckpointError(f"{piece.file} cannot be read at byte {piece.offset + done:,}: {error}") from error

    def _descriptor(self, file: Path) -> int:
        if file not in self._files:
            self._files[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        return self._files[file]

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])
