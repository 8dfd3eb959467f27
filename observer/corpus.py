"""Texts to observe a model on: JSONL, a folder of text files, Parquet, or standard input. How they are run is loop.py.

A corpus is read whole before the job starts, so that a bad line is told at once and its hash is known.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from observer.errors import CorpusError
from observer.observation import ALL

FIELDS = ("id", "context", "text")
EXAMPLE = '{"id": "a1", "context": "english", "text": "..."}'
STDIN = "-"
TEXT_SUFFIX, PARQUET_SUFFIX = ".txt", ".parquet"


class Text(NamedTuple):
    """One text; its context is the label that trust is kept apart by."""

    id: str
    context: str
    text: str


def read_corpus(path: str | Path, limit: int | None = None) -> list[Text]:
    """Read the first `limit` texts (all without one) in the corpus's order; raise CorpusError at the first bad one.

    - a file of JSON objects, one a line, with `id`, `context` and `text`; `-` is the same on standard input
    - a folder: each `.txt` file below it, in the order of their paths; the id is the path, the context the first folder
      of it (of files at the top, the name of the corpus's folder)
    - a `.parquet` file or a folder of them: the column `text`, and `id` and `context` where there are such columns (the
      row's number and the file's name, where not)
    """
    path = Path(path)
    texts: list[Text] = []
    place_of: dict[str, int] = {}
    for place, text in islice(_read(path), limit):
        if text.id in place_of:
            raise CorpusError(path, place, f"id {text.id!r} is that of line {place_of[text.id]} too; make ids unique")
        place_of[text.id] = place
        texts.append(text)
    if not texts and path.is_dir():
        raise CorpusError(path, 0, f"holds no texts; put {TEXT_SUFFIX} or {PARQUET_SUFFIX} files there")
    if not texts:
        raise CorpusError(path, 0, f"holds no texts; write one JSON object per line, such as {EXAMPLE}")
    return texts


def _read(path: Path) -> Iterator[tuple[int, Text]]:
    """Give each text with its line or row."""
    if str(path) == STDIN:
        return _jsonl(path, sys.stdin.buffer)
    if path.is_dir():
        parquet = sorted(path.rglob(f"*{PARQUET_SUFFIX}"))
        return _parquet(path, parquet) if parquet else _folder(path)
    if path.suffix == PARQUET_SUFFIX and path.exists():
        return _parquet(path, [path])
    try:
        return _jsonl(path, path.read_bytes().split(b"\n"))
    except OSError as error:
        problem = (
            f"cannot be read ({error.strerror}); give a JSONL file, a folder of texts, Parquet, or - with --corpus"
        )
        raise CorpusError(path, 0, problem) from None


def _jsonl(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[int, Text]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _parse(path, number, line)


def _folder(path: Path) -> Iterator[tuple[int, Text]]:
    for number, file in enumerate(sorted(path.rglob(f"*{TEXT_SUFFIX}")), start=1):
        name = file.relative_to(path)
        try:
            text = file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(file, 0, f"is not UTF-8 (byte {error.start}); save the file as UTF-8") from None
        except OSError as error:
            raise CorpusError(file, 0, f"cannot be read ({error.strerror}); check its permissions") from None
        context = name.parts[0] if len(name.parts) > 1 else path.resolve().name
        yield number, _checked(file, 0, {"id": name.as_posix(), "context": context, "text": text})


def _parquet(path: Path, files: list[Path]) -> Iterator[tuple[int, Text]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                present = [name for name in FIELDS if name in opened.schema_arrow.names]
                if "text" not in present:
                    raise CorpusError(file, 0, f"has no column text (it has {', '.join(opened.schema_arrow.names)})")
                for batch in opened.iter_batches(columns=present):
                    for entry in batch.to_pylist():
                        row += 1
                        defaults = {"id": str(row), "context": file.stem}
                        yield row, _checked(path, row, defaults | entry)
        except (pa.ArrowInvalid, OSError) as error:
            raise CorpusError(file, 0, f"cannot be read as Parquet ({str(error).splitlines()[0]})") from None


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
    return _checked(path, number, entry)


def _checked(path: Path, number: int, entry: dict[str, Any]) -> Text:
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
