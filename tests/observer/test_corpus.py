import json
from pathlib import Path

import pytest

from observer.corpus import read_corpus
from observer.errors import CorpusError
from segmoe.embedded import CORPUS, VALIDATION

GOOD = {"id": "a", "context": "english", "text": "hello"}


def test_texts_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(json.dumps(GOOD | {"id": str(n), "text": f"ñ{n}"}) for n in range(5)) + "\n\n")
    assert [text.text for text in read_corpus(file)] == [f"ñ{n}" for n in range(5)]
    assert [text.id for text in read_corpus(file, limit=2)] == ["0", "1"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"{not json}", "is not JSON"),
        (b'"a string"', "holds a str, not an object"),
        (b'{"id": "b", "text": "x"}', "lacks context; write"),
        (b"{}", "lacks id, context, text"),
        (b'{"id": 7, "context": "c", "text": "x"}', "has id of type int, not a string"),
        (b'{"id": "b", "context": null, "text": "x"}', "has context of type NoneType"),
        (b'{"id": "b", "context": "c", "text": " \\n"}', "has an empty text"),
        (b'{"id": "b", "context": "*", "text": "x"}', "stands for all contexts"),
        (b'{"id": "b", "context": "c", "text": "caf\xe9"}', "is not UTF-8"),
        (b'{"id": "b", "context": "c", "text": "\\ud800"}', "half of a surrogate pair in text"),
        (b'{"id": "a", "context": "c", "text": "x"}', "id 'a' is that of line 1 too"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: bytes, sentence: str) -> None:
    file = tmp_path / "corpus.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(CorpusError, match=sentence) as raised:
        read_corpus(file)
    assert (raised.value.path, raised.value.line) == (file, 2)
    assert str(raised.value).startswith(f"{file}:2: ") and "\n" not in str(raised.value)


def test_a_file_without_texts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(CorpusError, match="holds no texts"):
        read_corpus(tmp_path / "empty.jsonl")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="No such file"):
        read_corpus(tmp_path / "none.jsonl")


def test_the_embedded_texts_can_be_read() -> None:
    assert len({text.context for text in read_corpus(CORPUS)}) == len({t.context for t in read_corpus(VALIDATION)}) == 4
