"""Texts to observe a model on: JSONL with `id`, `context`, `text` per line. How they are run is job.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from observer.errors import CorpusError
from observer.observation import ALL

FIELDS = ("id", "context", "text")
EXAMPLE = '{"id": "a1", "context": "english", "text": "..."}'


class Text(NamedTuple):
    """One text; its context is the label that trust is kept apart by."""

    id: str
    context: str
    text: str


def read_corpus(path: str | Path, limit: int | None = None) -> list[Text]:
    """Read the first `limit` texts (all without one) in the file's order; raise CorpusError at the first bad line."""
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise CorpusError(path, 0, f"cannot be read ({error.strerror}); give a JSONL file with --corpus") from None
    texts: list[Text] = []
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if limit is not None and len(texts) == limit:
            break
        text = _parse(path, number, line)
        if text.id in line_of:
            raise CorpusError(path, number, f"id {text.id!r} is that of line {line_of[text.id]} too; make ids unique")
        line_of[text.id] = number
        texts.append(text)
    if not texts:
        raise CorpusError(path, 0, f"holds no texts; write one JSON object per line, such as {EXAMPLE}")
    return texts


def _parse(path: Path, number: int, line: bytes) -> Text:
    try:
        entry = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CorpusError(path, number, f"is not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise CorpusError(path, number, f"is not JSON ({error.msg} at {error.pos}); write {EXAMPLE}") from None
    except RecursionError:
        raise CorpusError(path, number, f"is nested too deeply; write {EXAMPLE}") from None
    if not isinstance(entry, dict):
        raise CorpusError(path, number, f"holds a {type(entry).__name__}, not an object; write {EXAMPLE}")
    missing = [name for name in FIELDS if name not in entry]
    if missing:
        raise CorpusError(path, number, f"lacks {', '.join(missing)}; write {EXAMPLE}")
    for name in FIELDS:
        if not isinstance(entry[name], str):
            kind = type(entry[name]).__name__
            raise CorpusError(path, number, f"has {name} of type {kind}, not a string; put it in quotes")
        if not entry[name].strip():
            raise CorpusError(path, number, f"has an empty {name}; fill it in or delete the line")
        if not _is_unicode(entry[name]):
            raise CorpusError(path, number, f"has half of a surrogate pair in {name}; write the character itself")
    if entry["context"] == ALL:
        raise CorpusError(path, number, f"has the context {ALL!r}, which stands for all contexts; choose another name")
    return Text(*(entry[name] for name in FIELDS))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
