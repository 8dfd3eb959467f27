"""The exported record is the record."""

import sqlite3
from contextlib import closing
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from observer.cli import main
from tests.observer import known
from tests.observer.test_db import EXPECTED


def test_others_read_the_same_rows_from_parquet(tmp_path: Path) -> None:
    db, folder = tmp_path / "r.db", tmp_path / "out"
    known.make(db)
    result = CliRunner().invoke(main, ["db", "export", "--db", str(db), "--parquet", str(folder)])
    assert result.exit_code == 0, result.output
    with closing(sqlite3.connect(db)) as connection:
        for view, columns in EXPECTED.items():
            rows = connection.execute(f"SELECT {', '.join(columns)} FROM {view}").fetchall()
            assert f"{view}: {len(rows):,} rows\n" in result.stdout
            if rows:
                files = f"read_parquet('{folder}/{view}/*/*.parquet', hive_partitioning = true)"
                found = duckdb.sql(f"SELECT {', '.join(columns)} FROM {files}").fetchall()
                assert sorted(map(repr, found)) == sorted(map(repr, rows)), view


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    db = tmp_path / "r.db"
    known.make(db)
    result = CliRunner().invoke(main, ["db", "export", "--db", str(db), "--parquet", str(tmp_path)])
    assert result.exit_code == 1 and "is not empty" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"r.db", "r.db-wal", "r.db-shm"}


@pytest.mark.parametrize("options", [["--windows", "4"], ["--drop", "expert-windows", "--drop", "state"]])
def test_pruning_keeps_what_stands_and_gives_room_back(tmp_path: Path, options: list[str]) -> None:
    from tests.observer.writing import write_run

    db = tmp_path / "r.db"
    write_run(db, count=60)
    with closing(sqlite3.connect(db)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = connection.execute("SELECT COUNT(*), SUM(trust), SUM(uses) FROM v_expert_trust").fetchall()
        uses = connection.execute("SELECT SUM(uses) FROM v_expert_window").fetchone()[0]
    size = db.stat().st_size
    result = CliRunner().invoke(main, ["db", "prune", "--db", str(db), "--run", "one", *options])
    assert result.exit_code == 0 and "given back" in result.stdout, result.output
    assert db.stat().st_size < size
    with closing(sqlite3.connect(db)) as connection:
        assert connection.execute("SELECT COUNT(*), SUM(trust), SUM(uses) FROM v_expert_trust").fetchall() == before
        kept = connection.execute("SELECT COUNT(DISTINCT window_index), SUM(uses) FROM v_expert_window").fetchone()
        assert kept == ((4, uses) if "--windows" in options else (0, None))
