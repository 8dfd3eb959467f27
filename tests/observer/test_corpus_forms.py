"""The same texts from a folder, from Parquet and from standard input."""

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from observer.corpus import Text, read_corpus
from observer.errors import CorpusError

TEXTS = [Text("english/a.txt", "english", "one\n"), Text("maths/deep/b.txt", "maths", "zwei ü\n")]


def folder(path: Path) -> Path:
    for text in TEXTS:
        file = path / text.id
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.text, encoding="utf-8")
    (path / "notes.md").write_text("not a text")
    return path


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    root = folder(tmp_path / "corpus")
    assert read_corpus(root) == TEXTS
    (root / "top.txt").write_text("x")
    assert read_corpus(root)[-1] == Text("top.txt", "corpus", "x")
    assert read_corpus(root, 1) == TEXTS[:1]


def test_parquet_is_read_with_and_without_ids_and_contexts(tmp_path: Path) -> None:
    columns = {name: [getattr(text, name) for text in TEXTS] for name in Text._fields}
    pq.write_table(pa.table(columns), tmp_path / "all.parquet")
    assert read_corpus(tmp_path / "all.parquet") == TEXTS
    (tmp_path / "parts").mkdir()
    for number, text in enumerate(TEXTS):
        pq.write_table(pa.table({"text": [text.text], "more": [1]}), tmp_path / "parts" / f"{number}.parquet")
    assert read_corpus(tmp_path / "parts") == [Text("1", "0", "one\n"), Text("2", "1", "zwei ü\n")]


def test_standard_input_is_jsonl(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "\n".join(json.dumps(text._asdict()) for text in TEXTS).encode()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    assert read_corpus("-") == TEXTS


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "y.parquet")
    bad = folder(tmp_path / "bad")
    (bad / "english" / "a.txt").write_bytes(b"\xff\xfe")
    for path, sentence in (
        (tmp_path / "empty", "holds no texts; put .txt or .parquet files there"),
        (tmp_path / "x.parquet", "cannot be read as Parquet"),
        (tmp_path / "y.parquet", r"has no column text \(it has words\)"),
        (tmp_path / "none.parquet", "cannot be read"),
        (bad, "a.txt: is not UTF-8"),
    ):
        with pytest.raises(CorpusError, match=sentence):
            read_corpus(path)
