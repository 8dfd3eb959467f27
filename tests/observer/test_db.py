import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from observer.db import Writer, open_db, tables
from observer.db.session import reading
from observer.db.writer import write_what_if
from observer.errors import DatabaseError, RunNameTaken
from observer.ledger import Scores
from observer.rows import WhatIfRow
from observer.runs import delete
from observer.totals import Totals
from tests.observer import writing
from tests.observer.asking import ask
from tests.observer.streams import CONTEXTS, EXPERT_BYTES
from tests.observer.writing import start_of, write_run

EXPECTED = {
    "v_run": {
        "run_id": "INTEGER",
        "name": "TEXT",
        "status": "TEXT",
        "error": "TEXT",
        "started_at": "TEXT",
        "heartbeat_at": "TEXT",
        "finished_at": "TEXT",
        "checkpoint": "TEXT",
        "checkpoint_digest": "TEXT",
        "model_family": "TEXT",
        "policy": "TEXT",
        "budget_experts": "INTEGER",
        "budget_bytes": "INTEGER",
        "capture": "TEXT",
        "config": "TEXT",
        "config_hash": "TEXT",
        "versions": "TEXT",
        "sequences": "INTEGER",
        "sequences_planned": "INTEGER",
        "tokens": "INTEGER",
        "nll": "REAL",
        "hits": "INTEGER",
        "misses": "INTEGER",
        "loads": "INTEGER",
        "evictions": "INTEGER",
        "bytes_read": "INTEGER",
        "parity": "TEXT",
        "events_seen": "INTEGER",
        "events_dropped": "INTEGER",
        "passes": "INTEGER",
        "predicted": "INTEGER",
        "verdict": "TEXT",
        "drops": "TEXT",
        "attempts": "INTEGER",
        "queue_events": "INTEGER",
        "queue_most": "INTEGER",
        "queue_capacity": "INTEGER",
        "waited_ns": "INTEGER",
    },
    "v_sequence": {
        "run_id": "INTEGER",
        "ordinal": "INTEGER",
        "text_id": "TEXT",
        "context": "TEXT",
        "tokens": "INTEGER",
        "nll": "REAL",
        "text": "TEXT",
        "predicted": "INTEGER",
    },
    "v_window": {
        "run_id": "INTEGER",
        "window_index": "INTEGER",
        "first_step": "INTEGER",
        "last_step": "INTEGER",
        "first_token": "INTEGER",
        "last_token": "INTEGER",
        "phase": "TEXT",
        "tokens": "INTEGER",
        "nll": "REAL",
        "wall_ns": "INTEGER",
        "hits": "INTEGER",
        "misses": "INTEGER",
        "loads": "INTEGER",
        "evictions": "INTEGER",
        "bytes_read": "INTEGER",
        "passes": "INTEGER",
        "predicted": "INTEGER",
        "last_window": "INTEGER",
    },
    "v_expert": {
        "run_id": "INTEGER",
        "component": "TEXT",
        "layer": "INTEGER",
        "expert": "INTEGER",
        "bytes": "INTEGER",
        "hits": "INTEGER",
        "misses": "INTEGER",
    },
    "v_expert_trust": {
        "run_id": "INTEGER",
        "component": "TEXT",
        "layer": "INTEGER",
        "expert": "INTEGER",
        "context": "TEXT",
        "trust": "REAL",
        "trust_low": "REAL",
        "trust_high": "REAL",
        "convergence": "REAL",
        "stability": "REAL",
        "efficiency": "REAL",
        "uses": "INTEGER",
        "blocks": "INTEGER",
        "definition_version": "INTEGER",
        "load": "REAL",
        "weight_mean": "REAL",
        "ean": "REAL",
        "reap": "REAL",
        "impact_mean": "REAL",
        "block_mean": "REAL",
        "block_m2": "REAL",
        "windows": "INTEGER",
        "window_cv": "REAL",
    },
    "v_expert_window": {
        "run_id": "INTEGER",
        "window_index": "INTEGER",
        "component": "TEXT",
        "layer": "INTEGER",
        "expert": "INTEGER",
        "trust": "REAL",
        "trust_low": "REAL",
        "trust_high": "REAL",
        "convergence": "REAL",
        "stability": "REAL",
        "efficiency": "REAL",
        "uses": "INTEGER",
        "blocks": "INTEGER",
        "load": "REAL",
        "weight_mean": "REAL",
        "ean": "REAL",
        "reap": "REAL",
        "impact_mean": "REAL",
        "surprise": "REAL",
        "novelty": "REAL",
        "arousal": "REAL",
        "reward": "REAL",
        "conflict": "REAL",
        "hits": "INTEGER",
        "misses": "INTEGER",
        "evictions": "INTEGER",
        "block_mean": "REAL",
        "block_m2": "REAL",
        "windows": "INTEGER",
        "window_cv": "REAL",
    },
    "v_salience": {
        "run_id": "INTEGER",
        "ordinal": "INTEGER",
        "component": "TEXT",
        "position": "INTEGER",
        "tokens": "INTEGER",
        "surprise": "REAL",
        "novelty": "REAL",
        "arousal": "REAL",
        "reward": "REAL",
        "conflict": "REAL",
        "salience": "REAL",
        "nll": "REAL",
        "predicted": "INTEGER",
        "definition_version": "INTEGER",
        "text": "TEXT",
    },
    "v_residency_event": {
        "run_id": "INTEGER",
        "event_index": "INTEGER",
        "step": "INTEGER",
        "kind": "TEXT",
        "component": "TEXT",
        "layer": "INTEGER",
        "expert": "INTEGER",
        "reason": "TEXT",
        "bytes": "INTEGER",
        "read_ns": "INTEGER",
        "waited_ns": "INTEGER",
        "idle_steps": "INTEGER",
        "policy_score": "REAL",
        "trust": "REAL",
        "next_use_step": "INTEGER",
    },
    "v_coactivation": {
        "run_id": "INTEGER",
        "component": "TEXT",
        "layer": "INTEGER",
        "expert": "INTEGER",
        "other_layer": "INTEGER",
        "other_expert": "INTEGER",
        "count": "INTEGER",
        "lift": "REAL",
    },
    "v_gap": {
        "run_id": "INTEGER",
        "reason": "TEXT",
        "first_step": "INTEGER",
        "last_step": "INTEGER",
        "count": "INTEGER",
    },
    "v_validation": {
        "run_id": "INTEGER",
        "statistic": "TEXT",
        "scope": "TEXT",
        "rho": "REAL",
        "low": "REAL",
        "high": "REAL",
        "n": "INTEGER",
        "texts": "INTEGER",
        "definition_version": "INTEGER",
    },
    "v_trace": {
        "run_id": "INTEGER",
        "file_index": "INTEGER",
        "file": "TEXT",
        "first_step": "INTEGER",
        "last_step": "INTEGER",
        "rows": "INTEGER",
        "bytes": "INTEGER",
        "sha256": "TEXT",
    },
    "v_what_if": {
        "run_id": "INTEGER",
        "phase": "TEXT",
        "policy": "TEXT",
        "budget_experts": "INTEGER",
        "budget_bytes": "INTEGER",
        "is_own": "INTEGER",
        "accesses": "INTEGER",
        "misses": "INTEGER",
        "miss_ratio": "REAL",
        "miss_ratio_low": "REAL",
        "miss_ratio_high": "REAL",
        "bytes_read": "INTEGER",
        "read_ms": "REAL",
        "bytes_per_s": "REAL",
        "evictions": "INTEGER",
        "reloads_soon": "INTEGER",
        "soon_tokens": "INTEGER",
    },
}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    db = tmp_path_factory.mktemp("db") / "odd #1?.db"
    write_run(db)
    return db


def test_the_views_have_exactly_the_promised_columns(record: Path) -> None:
    views = [name for (name,) in ask(record, "SELECT name FROM sqlite_master WHERE type = 'view' ORDER BY name")]
    assert views == sorted(EXPECTED)
    for view, columns in EXPECTED.items():
        assert [row[1] for row in ask(record, f"PRAGMA table_info({view})")] == list(columns)


def test_the_values_of_the_views_have_the_promised_types_and_are_never_null(record: Path) -> None:
    for view, columns in EXPECTED.items():
        for column, kind in columns.items():
            assert ask(record, f"SELECT DISTINCT typeof({column}) FROM {view}") == [(kind.lower(),)], (view, column)


def test_migrating_from_nothing_gives_the_tables_that_the_writer_uses(record: Path) -> None:
    engine = open_db(record)
    with reading(engine).begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    engine.dispose()
    strict = ask(record, "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'alembic%'")
    assert sorted(name for name, _ in strict) == sorted(tables.metadata.tables)
    assert all("STRICT" in sql.rsplit(")", 1)[1] for _, sql in strict)


def test_the_record_says_what_was_observed(record: Path) -> None:
    (run,) = ask(record, "SELECT name, status, sequences, sequences_planned, events_seen, events_dropped FROM v_run")
    assert run == ("one", "done", 24, 24, 24, 0)
    for name in ("tokens", "hits", "misses", "loads", "evictions", "bytes_read"):
        assert ask(record, f"SELECT {name} FROM v_run") == ask(record, f"SELECT SUM({name}) FROM v_window")
    assert ask(record, "SELECT tokens FROM v_run") == ask(record, "SELECT SUM(tokens) FROM v_sequence")
    rows = ask(record, "SELECT COUNT(*), COUNT(DISTINCT context) FROM v_expert_trust")
    assert rows == [(len(EXPERT_BYTES) * (len(CONTEXTS) + 1), len(CONTEXTS) + 1)]
    assert ask(record, "SELECT expert, bytes FROM v_expert WHERE layer = 2 AND expert > 3") == [(4, 300), (5, 350)]
    assert ask(record, "SELECT COUNT(*) FROM v_expert_trust WHERE NOT trust_low <= trust OR trust > trust_high") == [
        (0,)
    ]
    assert ask(record, "SELECT ABS(SUM(load) - 8) < 1e-9 FROM v_expert_trust") == [(1,)]  # 2 layers x 4 contexts


def test_two_runs_of_the_same_events_give_the_same_rows(tmp_path: Path) -> None:
    for name in ("a.db", "b.db"):
        write_run(tmp_path / name)
    for table in {*tables.metadata.tables} - {"run"}:
        assert ask(tmp_path / "a.db", f"SELECT * FROM {table}") == ask(tmp_path / "b.db", f"SELECT * FROM {table}")


def test_columns_are_named_as_the_fields_that_fill_them() -> None:
    assert Scores._fields == tables.SCORES
    assert set(Totals.__dataclass_fields__) <= set(tables.run.columns.keys()) & set(tables.window.columns.keys())


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    write_run(db, "mine", 1)
    engine = open_db(db)
    with pytest.raises(RunNameTaken, match="'mine' is in the record already"):
        Writer(engine, []).start(start_of("mine", 0), EXPERT_BYTES)
    engine.dispose()
    assert ask(db, "SELECT COUNT(*) FROM run") == [(1,)]


def writing_in_another_process(db: Path) -> "subprocess.Popen[bytes]":
    command, environment = [sys.executable, writing.__file__, db], os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


@pytest.mark.parametrize("transactions", [1, 2, 9, 30])
def test_a_killed_writer_leaves_whole_transactions(tmp_path: Path, transactions: int) -> None:
    db = tmp_path / "record.db"
    with writing_in_another_process(db) as writer:
        assert writer.stdout is not None
        for _ in range(transactions):
            assert writer.stdout.readline() == b"recorded\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert ask(db, "PRAGMA integrity_check") == [("ok",)]
    assert ask(db, "SELECT status, finished_at FROM v_run") == [("started", "")]
    (windows,) = ask(db, "SELECT COUNT(*) FROM v_window")[0]
    assert windows >= transactions - 1
    for name in ("tokens", "hits", "bytes_read"):
        assert ask(db, f"SELECT {name} FROM v_run") == ask(db, f"SELECT SUM({name}) FROM v_window")
    assert ask(db, "SELECT sequences FROM v_run") == ask(db, "SELECT COUNT(*) FROM v_sequence")
    assert ask(db, "SELECT COUNT(*) FROM v_expert_trust") == [(len(EXPERT_BYTES) * (len(CONTEXTS) + 1),)]
    write_run(db, "after the crash", 1)
    assert ask(db, "SELECT status FROM v_run ORDER BY run_id") == [("started",), ("done",)]


def test_what_is_replayed_and_a_job_on_the_same_file_do_each_other_no_harm(tmp_path: Path) -> None:
    """Ninety short transactions between those of a job: neither loses a row."""
    db = tmp_path / "record.db"
    write_run(db, "earlier", 1)
    engine = open_db(db)
    with writing_in_another_process(db) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        for transaction in range(30):
            assert writer.stdout.readline() == b"recorded\n"
            for misses in range(3):
                write_what_if(engine, 1, [replayed("lru", misses=3 * transaction + misses)], bytes_per_s=1e9)
        writer.stdin.close()
        assert writer.wait() == 0
    engine.dispose()
    assert ask(db, "PRAGMA integrity_check") == [("ok",)]
    assert ask(db, "SELECT policy, misses FROM v_what_if WHERE run_id = 1") == [("belady", 30), ("lru", 89)]
    (status, tokens) = ask(db, "SELECT status, tokens FROM v_run WHERE run_id = 2")[0]
    assert status == "done" and (tokens,) == ask(db, "SELECT SUM(tokens) FROM v_sequence WHERE run_id = 2")[0]
    assert ask(db, "SELECT sequences, sequences_planned FROM v_run WHERE run_id = 2") == [(1200, 1200)]


def replayed(policy: str, **changes: Any) -> WhatIfRow:
    return WhatIfRow(phase="all", policy=policy, **{**writing.REPLAYED, **changes})


def test_what_was_replayed_replaces_its_own_rows_and_those_of_an_earlier_trace(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    write_run(db, "one", 1)
    write_run(db, "two", 1)
    engine = open_db(db)

    def stored(run_id: int) -> list[Any]:
        return ask(
            db,
            "SELECT policy, budget_experts, misses, bytes_per_s, read_ms, miss_ratio FROM v_what_if "
            f"WHERE run_id = {run_id} ORDER BY policy, budget_experts",
        )

    first = stored(2)
    assert stored(1) == first == [("belady", 4, 30, 1e9, 0.0075, 1 / 3), ("lru", 4, 30, 1e9, 0.0075, 1 / 3)]
    write_what_if(engine, 1, [replayed("lru", misses=45), replayed("lru", budget_experts=8)], bytes_per_s=2e9)
    assert [row[:4] for row in stored(1)] == [("belady", 4, 30, 2e9), ("lru", 4, 45, 2e9), ("lru", 8, 30, 2e9)]
    write_what_if(engine, 1, [replayed("lru", accesses=100)], bytes_per_s=1e9)
    assert [row[:3] for row in stored(1)] == [("lru", 4, 30)]
    assert stored(2) == first
    with pytest.raises(DatabaseError, match="does not hold the run any more"):
        write_what_if(engine, 9, [replayed("lru")], bytes_per_s=1e9)
    broken = [replayed("lfu", accesses=100), replayed("lfu", accesses=100, budget_experts=None)]
    with pytest.raises(DatabaseError):
        write_what_if(engine, 1, broken, bytes_per_s=3e9)
    assert [row[:4] for row in stored(1)] == [("lru", 4, 30, 1e9)]  # all of it or nothing
    delete(engine, "one")
    engine.dispose()
    assert (stored(1), stored(2)) == ([], first)
