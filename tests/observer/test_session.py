"""A record is opened, made or refused with a sentence, and what is refused is left as it was."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from observer.db import open_db, session
from observer.db.session import reading
from observer.errors import DatabaseError
from tests.observer.asking import ask
from tests.observer.writing import write_run


def test_a_record_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    write_run(db, count=1)
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
    with pytest.raises(DatabaseError, match=r"written by a newer version \(revision 0999") as raised:
        open_db(db)
    assert raised.value.path == db
    assert ask(db, "SELECT version_num FROM alembic_version") == [("0999",)]


def test_what_is_not_a_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    db = tmp_path / "notes.txt"
    db.write_text("dear diary, " * 100)
    with pytest.raises(DatabaseError, match="is not a database"):
        open_db(db)
    assert db.read_text() == "dear diary, " * 100


def test_a_damaged_database_is_refused_with_a_sentence(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    db.write_bytes(session.HEADER + b"\xff" * 4096)
    with pytest.raises(DatabaseError, match="is not a database or is damaged"):
        open_db(db)


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    db = tmp_path / "other.db"
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(DatabaseError, match="database of something else"):
        open_db(db)
    assert ask(db, "SELECT name FROM sqlite_master") == [("bookmarks",)]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/proc/record.db", "cannot be opened for writing"),
        ("/no/such/folder/record.db", "the folder /no/such/folder does not exist"),
        ("/tmp", "is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(path: str, sentence: str) -> None:
    with pytest.raises(DatabaseError, match=sentence):
        open_db(path)


def test_reading_does_not_make_a_record_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="there is no such file"):
        open_db(tmp_path / "record.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_becomes_a_record(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    db.touch()
    open_db(db).dispose()
    assert ask(db, "SELECT COUNT(*) FROM v_run") == [(0,)]
    assert ask(db, "PRAGMA journal_mode") == [("wal",)]


def test_a_reader_neither_waits_for_a_writer_nor_sees_half_a_transaction(tmp_path: Path) -> None:
    write_run(tmp_path / "record.db", count=1)
    engine = open_db(tmp_path / "record.db")
    with engine.begin() as writing_one:
        writing_one.exec_driver_sql("UPDATE run SET status = 'error'")
        with reading(engine).begin() as other:
            assert other.exec_driver_sql("SELECT status FROM v_run").scalar_one() == "done"
        writing_one.rollback()
    engine.dispose()
