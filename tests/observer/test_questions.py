"""The shipped questions give the answers of a record that was made by hand, on SQLite and on DuckDB."""

import csv
import io
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
import pytest
from click.testing import CliRunner

from observer.cli import main
from observer.questions import questions
from tests.observer import known
from tests.observer.test_db import EXPECTED

QUESTIONS = questions()
ONE = "model"
E0 = round(known.entropy_share((600, 200, 200, 0)), 4)
ANSWERS: dict[str, list[tuple[Any, ...]]] = {
    "load": [(ONE, 0, 4, 3, 1, 2.4, E0, 1.0, E0), (ONE, 1, 4, 4, 0, 1.0, 1.0, 1.0, 1.0)],
    "specialists": [
        (ONE, 0, 1, "b", 200, 1.0, 0.3, 3.333),
        (ONE, 0, 0, "a", 600, 1.0, 0.7, 1.429),
        *((ONE, 1, expert, "a", 250, 0.7, 0.7, 1.0) for expert in range(4)),
        (ONE, 0, 2, "a", 200, 0.5, 0.7, 0.714),
    ],
    "trust": [
        (ONE, 0, 0, "*", 0.9, 0.85, 0.95, 600, 9, 0.1),
        (ONE, 0, 0, "a", 0.9, 0.85, 0.95, 600, 9, None),
        (ONE, 0, 0, "b", 0.9, 0.85, 0.95, 0, 9, None),
        (ONE, 0, 1, "*", 0.6, 0.55, 0.65, 200, 9, 0.1),
    ],
    "settled": [
        (ONE, 0, 1000, -1.0, 0.75),
        *((ONE, 0, tokens, 1.0, 0.75) for tokens in (2000, 3000, 4000)),
        (ONE, 1, 1000, -1.0, 1.0),
        *((ONE, 1, tokens, 1.0, 1.0) for tokens in (2000, 3000, 4000)),
    ],
    "pairs": [
        (ONE, "same layer", 0, 0, 0, 1, 30, 2.0, 0.05),
        (ONE, "next layer", 0, 0, 1, 2, 300, 1.5, 0.5),
    ],
    "narrow_layers": [(ONE, 0, 4, 1, 3, 3, 300), (ONE, 1, 4, 2, 4, 4, 400)],
    "residency": [("prefill", 4000, 0.75, 5.0, 4000, 1000.0, 3, 0.6667, 0.3333, 200, 2.0)],
    "evictions": [
        (4, 2, 0.65, 850, 1, 1.176, 1.0, 1.0, 1.0),
        (3, 2, 0.45, 450, 1, 2.222, 2.0, 2.0, 1.0),
        (2, 2, 0.35, 450, 0, 0.0, None, None, None),
        (1, 2, 0.075, 250, 1, 4.0, 3.0, 3.0, 0.0),
    ],
    "moments": [
        ("text1", "b", ONE, 32, 0.58, "surprise", 2.0, 3.0, 2.0, "words"),
        ("text0", "a", ONE, 0, 0.5, "novelty", 1.0, 2.0, 2.0, "words"),
    ],
    "evidence": [("all", 0, 7, 10, 0.9), ("lost", 3, 4, 10, None)],
    "validity": [
        ("global", "reap", 0.8, 0.7, 0.9, 8, 20, 1),
        ("global", "trust", 0.5, 0.4, 0.6, 8, 20, 0),
        ("global", "load", 0.1, 0.0, 0.2, 8, 20, -1),
    ],
    "difference": [(ONE, 0, 0, "*", 0.5, 0.9, 0.4, 0.0, 1), (ONE, 0, 0, "a", 0.9, 0.9, 0.0, 0.0, 0)],
    "parity": [("first", "done", "equal", "d", "f", "lru", 4, "contribution", 1, "{}", '{"equal": true}')],
}
"""The first rows of each answer, worked out by hand."""
LENGTHS = {"trust": 24, "moments": 6, "difference": 24}
VALUES = {"run_id": 1, "other_id": 2}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    db = tmp_path_factory.mktemp("known") / "record.db"
    known.make(db)
    return db


@pytest.fixture(scope="module")
def duck(record: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The record's views in DuckDB, which gets rows and never sees the file."""
    connection = duckdb.connect(":memory:")
    types = {"INTEGER": "BIGINT", "REAL": "DOUBLE", "TEXT": "VARCHAR"}
    with closing(sqlite3.connect(record)) as source:
        for view, columns in EXPECTED.items():
            connection.execute(f"CREATE TABLE {view} ({', '.join(f'{n} {types[t]}' for n, t in columns.items())})")
            rows = source.execute(f"SELECT * FROM {view}").fetchall()
            if rows:
                connection.executemany(f"INSERT INTO {view} VALUES ({', '.join('?' * len(columns))})", rows)
    yield connection
    connection.close()


def test_there_are_thirteen_questions() -> None:
    assert list(QUESTIONS) == list(ANSWERS) and len(QUESTIONS) == 13
    assert all(question.title.endswith("?") for question in QUESTIONS.values())


def check(name: str, rows: list[tuple[Any, ...]]) -> None:
    wanted = ANSWERS[name]
    assert len(rows) == LENGTHS.get(name, len(wanted))
    for found, row in zip(rows, wanted, strict=False):
        assert tuple(0.0 if value == 0 else value for value in found) == tuple(0.0 if v == 0 else v for v in row)


@pytest.mark.parametrize("name", QUESTIONS)
def test_sqlite_gives_the_answer_that_is_known(record: Path, name: str) -> None:
    with closing(sqlite3.connect(record)) as connection:
        check(name, connection.execute(QUESTIONS[name].sql, VALUES).fetchall())


@pytest.mark.parametrize("name", QUESTIONS)
def test_duckdb_gives_the_answer_that_is_known(duck: duckdb.DuckDBPyConnection, name: str) -> None:
    question = QUESTIONS[name]
    values = {key: value for key, value in VALUES.items() if f"${key}" in question.sql}
    check(name, duck.execute(question.sql, values).fetchall())


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_command_answers_with_csv(record: Path, name: str) -> None:
    other = ("--other", "second") if QUESTIONS[name].compares else ()
    result = CliRunner().invoke(main, ["db", "query", name, "--db", str(record), "--run", "first", *other])
    assert result.exit_code == 0, result.output
    rows = list(csv.reader(io.StringIO(result.stdout)))
    assert len(rows) == 1 + LENGTHS.get(name, len(ANSWERS[name])) and len(rows[0]) == len(ANSWERS[name][0])


def test_a_question_that_compares_wants_another_run(record: Path) -> None:
    result = CliRunner().invoke(main, ["db", "query", "difference", "--db", str(record)])
    assert result.exit_code == 2 and "--other" in result.stderr
    assert "no question 'x'" in CliRunner().invoke(main, ["db", "query", "x", "--db", str(record)]).stderr


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_answer_on_an_empty_run_is_no_error(tmp_path: Path, name: str) -> None:
    from observer.db import open_db

    open_db(tmp_path / "r.db").dispose()
    with closing(sqlite3.connect(tmp_path / "r.db")) as connection:
        assert connection.execute(QUESTIONS[name].sql, VALUES).fetchall() == []
