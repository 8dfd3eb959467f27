"""From each version of the record to the newest and back, with what was in it."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config

from observer.db import open_db, session
from observer.errors import DatabaseError
from tests.observer.asking import ask


def at_revision(db: Path, revision: str, move: Callable[[Config, str], None] = command.upgrade) -> None:
    """Make a record as an earlier version left it, or take one down to that."""
    engine = session.engine_for(db, foreign_keys=False)
    with engine.begin() as connection:
        config = session._config()
        config.attributes["connection"] = connection
        move(config, revision)
    engine.dispose()


def fill(db: Path, table: str, **given: Any) -> None:
    """Insert a row of made-up values."""
    with closing(sqlite3.connect(db)) as connection, connection:
        columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
        made = {"INTEGER": 7, "REAL": 0.5, "TEXT": "x", "BLOB": b"x"}
        row = {name: made[kind] for _, name, kind, *_ in columns} | {"run_id": 1} | given
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", (*row.values(),))


def test_down_and_up_again_works(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    open_db(db).dispose()
    views = ask(db, "SELECT name, sql FROM sqlite_master WHERE type = 'view' ORDER BY name")
    at_revision(db, "base", command.downgrade)
    assert ask(db, "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'") == [("alembic_version",)]
    open_db(db).dispose()
    assert ask(db, "SELECT name, sql FROM sqlite_master WHERE type = 'view' ORDER BY name") == views


def test_a_failing_migration_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(connection: Any, path: Path) -> None:
        connection.exec_driver_sql("CREATE TABLE half (a INTEGER)")
        raise DatabaseError(path, "made to fail")

    db = tmp_path / "record.db"
    with monkeypatch.context() as patched:
        patched.setattr(session, "_upgrade", broken)
        with pytest.raises(DatabaseError, match="made to fail"):
            open_db(db)
    assert ask(db, "SELECT name FROM sqlite_master") == []
    open_db(db).dispose()


def test_a_record_of_the_first_version_is_upgraded_and_keeps_its_rows(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    at_revision(db, "0001")
    for table in ("run", "sequence", "score_window", "expert", "expert_trust"):
        fill(db, table, **({"first_step": 3} if table == "score_window" else {}))
    before = {view: ask(db, f"SELECT * FROM {view}") for view in ("v_run", "v_sequence", "v_window", "v_expert_trust")}
    open_db(db).dispose()
    for view, rows in before.items():
        assert [row[: len(rows[0])] for row in ask(db, f"SELECT * FROM {view}")] == rows, view
    assert ask(db, "SELECT passes, verdict, attempts FROM v_run") == [(5, "{}", 1)]
    assert ask(db, "SELECT passes, last_window FROM v_window") == [(5, 7)]
    assert ask(db, "PRAGMA foreign_key_check") == []


def test_a_record_of_the_second_version_is_upgraded_and_keeps_its_rows(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    at_revision(db, "0002")
    before = [name for (name,) in ask(db, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    names = sorted(set(before) - {"run", "alembic_version"})
    assert len(names) == 12
    for table in ("run", *names):
        fill(db, table)
    rows = {table: ask(db, f"SELECT * FROM {table}") for table in before if table != "alembic_version"}
    views = dict(ask(db, "SELECT name, sql FROM sqlite_master WHERE type = 'view'"))
    open_db(db).dispose()
    for table, kept in rows.items():
        # Of its queue nobody told; how often its expert was wanted its window says.
        more = {"run": (0, 0, 0, 0), "expert": (7, 7)}.get(table, ())
        assert ask(db, f"SELECT * FROM {table}") == [(*row, *more) for row in kept], table
    after = dict(ask(db, "SELECT name, sql FROM sqlite_master WHERE type = 'view'"))
    assert after == views | {name: after[name] for name in ("v_what_if", "v_run", "v_expert", "v_residency_event")}
    assert ask(db, "SELECT COUNT(*) FROM v_what_if") == [(0,)]
    assert ask(db, "PRAGMA foreign_key_check") == []


def test_a_record_of_the_third_version_goes_up_and_down_as_it_was(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    at_revision(db, "0003")
    fill(db, "run")
    before = ask(db, "SELECT * FROM v_run"), ask(db, "SELECT sql FROM sqlite_master WHERE name = 'v_run'")
    open_db(db).dispose()
    assert ask(db, "SELECT * FROM v_run") == [(*before[0][0], 0, 0, 0, 0)]
    at_revision(db, "0003", command.downgrade)
    assert (ask(db, "SELECT * FROM v_run"), ask(db, "SELECT sql FROM sqlite_master WHERE name = 'v_run'")) == before


def test_a_record_of_the_fifth_version_gets_words_for_wasted_reads_and_loses_them_again(tmp_path: Path) -> None:
    db, view = tmp_path / "record.db", "SELECT sql FROM sqlite_master WHERE name = 'v_residency_event'"
    at_revision(db, "0005")
    fill(db, "residency_event")
    before = ask(db, view), ask(db, "SELECT * FROM v_residency_event")
    open_db(db).dispose()
    assert "waste" in ask(db, view)[0][0] and ask(db, "SELECT * FROM v_residency_event") == before[1]
    at_revision(db, "0005", command.downgrade)
    assert (ask(db, view), ask(db, "SELECT * FROM v_residency_event")) == before


def test_a_record_of_the_fourth_version_learns_how_often_experts_were_wanted(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    at_revision(db, "0004")
    fill(db, "run")
    for expert in (0, 1):  # no window tells of the second
        fill(db, "expert", expert=expert)
    for index, (hits, misses) in enumerate(((3, 1), (4, 0))):
        fill(db, "expert_window", window_index=index, expert=0, hits=hits, misses=misses)
    views = "SELECT name, sql FROM sqlite_master WHERE type = 'view' ORDER BY name"
    before = ask(db, "SELECT * FROM v_expert"), ask(db, views)
    open_db(db).dispose()
    assert ask(db, "SELECT * FROM v_expert") == [(*before[0][0], 7, 1), (*before[0][1], 0, 0)]
    at_revision(db, "0004", command.downgrade)
    assert (ask(db, "SELECT * FROM v_expert"), ask(db, views)) == before
    assert ask(db, "SELECT COUNT(*), SUM(hits) FROM v_expert_window") == [(2, 7)]
