"""A checkpoint's own tokenizer, if it has one. What is done with the tokens is parity.py and generate.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def read_tokenizer(folder: Path) -> Any | None:
    """The folder's tokenizer, or None: from a bare config transformers would make one that knows no words."""
    if not any((folder / name).is_file() for name in FILES):
        return None
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
