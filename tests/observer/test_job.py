"""Jobs on the embedded model, end to end and in this process."""

import contextlib
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from observer.cli import main
from observer.collect import QUEUE_EVENTS, Collector
from observer.errors import CollectorError
from observer.job import run_job
from observer.progress import JobProgress
from observer.salience import DEFINITION_VERSION
from observer.settings import JobConfig, config_hash
from observer.totals import Totals
from segmoe.embedded import CORPUS, MODEL
from tests.observer.asking import ask, observer

TABLES = ("sequence", "score_window", "expert", "expert_trust", "residency_event", "run_state", "gap")


def config(db: Path, **settings: Any) -> JobConfig:
    return JobConfig(model=MODEL, corpus=CORPUS, db=db, **{"verify": False, "max_tokens": 48, **settings})


class Interrupting(JobProgress):
    """Sends this process a signal after the first batch, as a user would."""

    times = 1

    def advance(self, texts: int, totals: Totals, drops: int) -> None:
        for _ in range(self.times):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    db = tmp_path_factory.mktemp("job") / "record.db"
    common = ("--policy", "lru", "--no-verify", "--limit", 12, "--max-tokens", 64, "--keep-text")
    result = observer("run", "--db", db, "--run", "first", *common, "--generate", 3, "--generate-texts", 4)
    return db, result


def test_a_job_ends_with_a_report_and_a_complete_record(done: tuple[Path, Result]) -> None:
    db, result = done
    assert result.exit_code == 0, result.output
    (run,) = ask(db, "SELECT status, sequences, events_dropped, parity, budget_experts, capture FROM v_run")
    assert run == ("done", 12, 0, "unchecked", 40, "contribution")
    phases = ask(db, "SELECT phase, COUNT(*), SUM(tokens) FROM v_window GROUP BY phase ORDER BY phase")
    assert [phase for phase, *_ in phases] == ["decode", "prefill"]
    assert phases[0][2] == 2 * 4  # the first of three new tokens comes from the prompt's pass
    (scored,) = ask(db, "SELECT SUM(tokens) FROM v_sequence")[0]
    assert phases[1][2] == scored + 4 * 32
    assert ask(db, "SELECT SUM(uses) FROM v_expert_trust WHERE context = '*'") == [(scored * 5 * 4,)]
    assert ask(db, "SELECT MIN(nll) > 0.5 AND MAX(nll) < 9, MIN(LENGTH(text)) > 9 FROM v_sequence") == [(1, 1)]
    assert ask(db, "SELECT COUNT(*) FROM v_expert") == [(160,)]


def test_the_text_of_salient_moments_is_stored_if_asked_for(done: tuple[Path, Result], tmp_path: Path) -> None:
    """The moments of a text, one after the other, are what of it was scored."""
    db, _ = done
    texts = dict(ask(db, "SELECT ordinal, text FROM v_sequence"))
    moments = ask(db, "SELECT ordinal, text FROM v_salience ORDER BY ordinal, position")
    assert len(moments) > 12
    for ordinal, text in texts.items():
        said = "".join(moment for number, moment in moments if number == ordinal)
        assert len(said) > 9
        assert text.startswith(said)
    other = tmp_path / "other.db"
    assert observer("run", "--db", other, "--no-verify", "--limit", 2).exit_code == 0
    assert ask(other, "SELECT DISTINCT text FROM v_salience") == [("",)]


def test_the_report_comes_from_the_record_alone(done: tuple[Path, Result]) -> None:
    db, result = done
    again = observer("report", "--db", db, "--run", "first")
    assert again.exit_code == 0 and again.stdout == result.stdout
    for line in (
        "Run first: done",
        "Parity: not compared with the stock model",
        "model 4 ",
        "Most trusted experts",
        "Least trusted experts",
        "Events: ",
        "python -m dashboard --db",
        "only 40 fit: LRU",
    ):
        assert line in result.stdout


def test_a_name_that_is_taken_by_another_job_is_one_line_that_says_what_differs(done: tuple[Path, Result]) -> None:
    result = observer("run", "--db", done[0], "--run", "first", "--no-verify", "--limit", 12, "--max-tokens", 64)
    assert result.exit_code == 1 and result.stdout == "" and result.stderr.count("\n") == 1
    assert "generate was 3 and is 0 now; generate_texts was 4 and is 32 now; use the same" in result.stderr
    other = observer("run", "--db", done[0], "--run", "first", "--no-verify", "--limit", 11)
    assert "the corpus holds other texts" in other.stderr and "sha256" not in other.stderr


def test_a_run_whose_scores_meant_something_else_does_not_go_on(done: tuple[Path, Result], tmp_path: Path) -> None:
    db = tmp_path / "r.db"
    db.write_bytes(done[0].read_bytes())
    with contextlib.closing(sqlite3.connect(db)) as record, record:
        record.execute("UPDATE run SET versions = json_set(versions, '$.\"salience''s definition\"', '2')")
    common = ("--no-verify", "--limit", 12, "--max-tokens", 64, "--keep-text", "--policy", "lru")
    result = observer("run", "--db", db, "--run", "first", *common, "--generate", 3, "--generate-texts", 4)
    now = f"salience's definition was version 2 and is {DEFINITION_VERSION} now; use the same"
    assert result.exit_code == 1 and now in result.stderr


def test_a_job_that_is_done_finds_nothing_left_to_do(done: tuple[Path, Result], tmp_path: Path) -> None:
    db = tmp_path / "r.db"
    db.write_bytes(done[0].read_bytes())
    before = {table: ask(db, f"SELECT * FROM {table}") for table in TABLES}
    common = ("--no-verify", "--limit", 12, "--max-tokens", 64, "--keep-text", "--policy", "lru")
    again = observer("run", "--db", db, "--run", "first", *common, "--generate", 3, "--generate-texts", 4)
    assert again.exit_code == 0 and again.stdout == done[1].stdout.replace(str(done[0]), str(db))
    assert {table: ask(db, f"SELECT * FROM {table}") for table in TABLES} == before
    assert ask(db, "SELECT status, attempts FROM v_run") == [("done", 2)]


WHOLE = dict(limit=24, batch=4, generate=3, generate_texts=3, window_tokens=200, windows=4, trace=True)
WHOLE |= dict(trace_file_rows=300, run="it")


def everything(db: Path) -> dict[str, Any]:
    """All that a run says but times: rows of each table, and the files of its trace."""
    tables = [name for (name,) in ask(db, "SELECT name FROM sqlite_master WHERE type = 'table' AND name <> 'run'")]
    found: dict[str, Any] = {}
    for table in tables:
        columns = [row[1] for row in ask(db, f"PRAGMA table_info({table})") if not row[1].endswith("_ns")]
        found[table] = ask(db, f"SELECT {', '.join(columns)} FROM {table}") if table != "run_state" else None
    columns = [row[1] for row in ask(db, "PRAGMA table_info(run)")]
    times = ("_at", "_ns", "queue_events", "queue_most")
    kept = [c for c in columns if not c.endswith(times) and c not in ("attempts", "config", "config_hash")]
    found["run"] = ask(db, f"SELECT {', '.join(kept)} FROM run")
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    db = tmp_path_factory.mktemp("whole") / "r.db"
    assert run_job(config(db, **WHOLE), JobProgress()).status == "done"
    found = everything(db)
    assert len(found["score_window"]) in (4, 5) and len(found["trace_file"]) > 2
    assert len(found["residency_event"]) > 100
    ((hits, misses),) = ask(db, "SELECT SUM(hits), SUM(misses) FROM v_expert")
    assert [(hits, misses)] == ask(db, "SELECT hits, misses FROM v_run") and min(hits, misses) > 100
    return found


class Stopping(JobProgress):
    """Stops the job after so many batches, by a signal or by an error."""

    def __init__(self, batches: int, *, at_once: bool = False, fail: bool = False) -> None:
        super().__init__()
        self.left, self.at_once, self.fail = batches, at_once, fail

    def advance(self, texts: int, totals: Totals, drops: int) -> None:
        self.left -= 1
        if self.left == 0 and self.fail:
            raise RuntimeError("made to fail")
        if self.left == 0:
            for _ in range(1 + self.at_once):
                os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("how", ["signal", "two signals", "error", "limits"])
def test_a_job_that_goes_on_ends_as_if_it_had_never_stopped(
    how: str, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    db = tmp_path / "r.db"
    for batches in (1, 2, 3, 1):
        if how == "error":
            with pytest.raises(RuntimeError):
                run_job(config(db, **WHOLE), Stopping(batches, fail=True))
        elif how == "limits":
            done = ask(db, "SELECT tokens FROM v_run")[0][0] if db.exists() else 0
            run_job(config(db, **WHOLE, total_tokens=done + 150 * batches), JobProgress())
        else:
            result = run_job(config(db, **WHOLE), Stopping(batches, at_once=how == "two signals"))
            assert result.status == "cancelled"
    assert run_job(config(db, **WHOLE), JobProgress()).status == "done"
    found = everything(db)
    if how == "limits":  # generating came before the last texts, so the order of passes is another one
        assert found["sequence"] == uninterrupted["sequence"]
        return
    for table, rows in uninterrupted.items():
        assert found[table] == rows, table
    assert ask(db, "SELECT attempts FROM v_run") == [(5,)]


def test_a_run_that_is_pruned_before_it_goes_on_counts_nothing_twice(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    db = tmp_path / "r.db"
    for batches, options in ((2, ["--windows", 4]), (1, ["--drop", "expert-windows"]), (1, ["--windows", 4])):
        assert run_job(config(db, **WHOLE), Stopping(batches)).status == "cancelled"
        assert observer("db", "prune", "--db", db, "--run", "it", *options).exit_code == 0
    assert run_job(config(db, **WHOLE), JobProgress()).status == "done"
    found = everything(db)
    for table in set(uninterrupted) - {"expert_window", "score_window"}:  # merged at other times
        assert found[table] == uninterrupted[table], table
    sums = "SELECT SUM(hits), SUM(misses), SUM(loads), SUM(tokens) FROM"
    assert ask(db, f"{sums} score_window") == ask(db, f"{sums} run")


def test_a_signal_ends_the_job_after_the_step_as_cancelled(tmp_path: Path) -> None:
    result = run_job(config(tmp_path / "r.db", batch=2, limit=20), Interrupting())
    assert result.status == "cancelled"
    assert ask(tmp_path / "r.db", "SELECT status, sequences, events_dropped FROM v_run") == [("cancelled", 2, 0)]
    queue = "queue_events = 0, queue_most > 0, queue_most <= queue_capacity, queue_capacity"
    assert ask(tmp_path / "r.db", f"SELECT {queue} FROM v_run") == [(1, 1, 1, QUEUE_EVENTS)]


def test_a_second_signal_stops_at_once_and_the_record_is_closed_all_the_same(tmp_path: Path) -> None:
    progress = Interrupting()
    progress.times = 2
    assert run_job(config(tmp_path / "r.db", batch=2, limit=20), progress).status == "cancelled"
    assert ask(tmp_path / "r.db", "SELECT status, finished_at <> '' FROM v_run") == [("cancelled", 1)]


def test_an_observer_that_fails_ends_the_job_as_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(collector: Collector, item: object) -> None:
        raise ValueError("made to fail")

    monkeypatch.setattr(Collector, "_handle", fail)
    with pytest.raises(CollectorError, match="made to fail"):
        run_job(config(tmp_path / "r.db", batch=2, limit=20), JobProgress())
    ((status, error, dropped),) = ask(tmp_path / "r.db", "SELECT status, error, events_dropped FROM v_run")
    assert status == "error" and "made to fail" in error and dropped > 0


def test_the_same_job_twice_gives_the_same_scores_and_the_same_hash(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_job(config(tmp_path / f"{name}.db", limit=4, run=name), JobProgress())
    for sql in ("SELECT * FROM expert_trust", "SELECT * FROM sequence", "SELECT config_hash, hits, nll FROM v_run"):
        assert ask(tmp_path / "a.db", sql) == ask(tmp_path / "b.db", sql)


def test_the_hash_depends_on_what_decides_the_results_only(tmp_path: Path) -> None:
    def hashed(**settings: Any) -> str:
        return config_hash(config(tmp_path / "r.db", **settings).resolved(experts=1, corpus_sha256="c"), "d")

    assert hashed() == hashed(run="other", keep_text=True)
    assert hashed() != hashed(batch=3) and hashed() != hashed(limit=5)
    json.dumps(config(tmp_path / "r.db").resolved(experts=1, corpus_sha256="c"))


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["run", "--experts", "0"], 2, "0 is not in the range"),
        (["run", "--experts", "4", "--budget", "1GiB"], 2, "not both"),
        (["run", "--corpus", "/no/such.jsonl"], 1, "observer: /no/such.jsonl: cannot be read"),
        (["run", "--model", "/no/such"], 1, "observer: /no/such is not a folder"),
        (["run", "--policy", "fate", "--no-verify"], 1, "fate"),
        (["run", "--budget", "much", "--no-verify"], 1, "observer: 'much' is no size"),
        (["report"], 1, "there is no such file"),
        (["report", "--run", "x"], 1, "there is no such file"),
    ],
)
def test_expected_failures_are_one_line(
    arguments: list[str], code: int, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = observer(*arguments)
    assert result.exit_code == code, result.output
    assert sentence in result.stderr
    if code == 1:
        assert result.stderr.count("\n") == 1 and "Traceback" not in result.output
    if (tmp_path / "observer.db").exists():
        assert ask(tmp_path / "observer.db", "SELECT COUNT(*) FROM run") == [(0,)]


def test_a_report_on_a_record_without_runs_says_so(tmp_path: Path) -> None:
    from observer.db import open_db

    open_db(tmp_path / "r.db").dispose()
    result = observer("report", "--db", tmp_path / "r.db")
    assert (result.exit_code, result.stderr) == (1, "observer: no runs: none; make one with `observer run`\n")


def test_each_command_and_option_has_help() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        assert all(option.help for option in command.params), name


def test_importing_the_package_costs_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, observer, observer.cli, observer.collect; assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import observer as package

    assert sorted(package.__all__) == package.__all__ and all(hasattr(package, name) for name in package.__all__)
