"""Where settings come from, and what the commands on runs do."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from observer import job
from observer.db import open_db, session
from observer.errors import DatabaseError
from observer.job import JobResult
from observer.progress import JobProgress
from observer.runs import is_live
from observer.settings import JobConfig
from tests.observer import known
from tests.observer.asking import ask, observer
from tests.observer.writing import write_run

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from observer.runs import locked
with locked(Path(sys.argv[1]), 1, "one"):
    print("held", flush=True)
    sys.stdin.read()
"""
QUICK = ("--no-verify", "--limit", "2", "--max-tokens", "16")


@contextmanager
def held(db: Path) -> Iterator[None]:
    """While this lasts, another process works on the first run."""
    command, environment = [sys.executable, "-c", HOLD, str(db)], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        yield
        holder.kill()


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[JobConfig]:
    """The settings that jobs are given instead of running."""
    seen: list[JobConfig] = []

    def run_job(config: JobConfig, progress: JobProgress) -> JobResult:
        seen.append(config)
        return JobResult("x", "done", 1, 0)

    monkeypatch.setattr(job, "run_job", run_job)
    return seen


def test_a_flag_goes_before_the_environment_that_before_the_file_that_before_the_default(
    configured: list[JobConfig], tmp_path: Path
) -> None:
    file = tmp_path / "job.toml"
    file.write_text('batch = 5\nmax-tokens = 100\nlimit = 7\ngenerate = 2\nno-verify = true\nbudget = "1GiB"\n')
    environment = {"OBSERVER_RUN_LIMIT": "8", "OBSERVER_RUN_GENERATE": "3", "OBSERVER_RUN_CONFIG": str(file)}
    observer("run", "--json", "--generate", 4, "--experts", 9, env=environment)
    (config,) = configured
    assert (config.generate, config.limit, config.batch, config.max_tokens) == (4, 8, 5, 100)
    assert (config.verify, config.generate_texts) == (False, 32)
    assert (config.experts, config.budget) == (9, None)  # the flag excludes what the file says


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("bacth = 5", "sets bacth, which is no setting of a job; there are batch,"),
        ("batch = [5]", "sets batch to a list"),
        ("batch = ", "is not TOML"),
        ('batch = "many"', "'many' is not a valid integer"),
        ('experts = 3\nbudget = "1GiB"', "not both"),
        ('time-limit = "soon"', "'soon' is no duration"),
        ('trace-cap = "lots"', "'lots' is no size"),
    ],
)
def test_a_file_that_says_something_else_is_refused(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(content)
    result = observer("run", "--db", tmp_path / "r.db", "--config", tmp_path / "job.toml", "--no-verify")
    assert result.exit_code in (1, 2) and sentence in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "r.db").exists()


def test_json_is_an_object_a_line_and_failures_are_one_too(tmp_path: Path) -> None:
    arguments = ("run", "--db", tmp_path / "r.db", "--run", "it", "--json", *QUICK)
    result = observer(*arguments)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0 and [line["event"] for line in lines] == ["launch", "progress", "done"]
    assert lines[1]["tokens"] == lines[2]["tokens"] > 0
    assert lines[0]["run"] == "it" and lines[0]["config"]["limit"] == 2 and not lines[0]["goes_on"]
    assert lines[1]["texts"] == lines[1]["texts_planned"] == 2
    assert lines[2] == {"event": "done", "run": "it", "status": "done", "tokens": 32, "dropped": 0}
    failed = observer(*arguments, "--batch", 3)
    error = json.loads(failed.stdout)["error"]
    assert failed.exit_code == 1 and error["kind"] == "RunDiffers" and "batch was 8 and is 3 now" in error["message"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--trace-impacts"], 2, "--trace-impacts means nothing without --trace"),
        (["--seed", "0"], 2, "--seed means nothing without --loop"),
        (["--generate-texts", "9"], 2, "--generate-texts means nothing without --generate"),
        (["--trust-from", "x"], 1, "ranks by no trust; leave out --trust-from, or add --policy trust"),
        (["--trace-impacts", "--trace"], 0, ""),
        (["--trust-from", "x", "--policy", "trust-per-layer"], 0, ""),
    ],
)
def test_an_option_that_would_be_of_no_effect_is_refused(
    configured: list[JobConfig], arguments: list[str], code: int, sentence: str
) -> None:
    result = observer("run", "--json", *arguments)
    assert (result.exit_code, len(configured)) == (code, int(code == 0))
    assert sentence in result.output


def test_a_job_that_is_interrupted_before_it_began_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: JobConfig, progress: JobProgress) -> JobResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run_job", interrupted)
    result = observer("run")
    assert (result.exit_code, result.stderr) == (130, "observer: interrupted\n")


def test_done_with_events_that_were_lost_is_exit_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "run_job", lambda config, progress: JobResult("x", "done", 1, 5))
    assert observer("run", "--json").exit_code == 3


@pytest.fixture
def two_runs(tmp_path: Path) -> Path:
    known.make(tmp_path / "r.db")
    return tmp_path / "r.db"


def test_a_record_without_runs_says_so(tmp_path: Path) -> None:
    open_db(tmp_path / "r.db").dispose()
    listed = observer("runs", "list", "--db", tmp_path / "r.db")
    assert (listed.exit_code, listed.stdout) == (0, "") and "holds no runs; make one with" in listed.stderr


def test_runs_are_listed_and_shown(two_runs: Path) -> None:
    lines = observer("runs", "list", "--db", two_runs).stdout.splitlines()
    assert len(lines) == 2 and lines[0].startswith("first: done, 2 of 2 texts, 4,000 tokens")
    rows = [json.loads(line) for line in observer("runs", "list", "--db", two_runs, "--json").stdout.splitlines()]
    assert [row["name"] for row in rows] == ["first", "second"] and rows[0]["is_live"] is False
    shown = json.loads(observer("runs", "show", "first", "--db", two_runs).stdout)
    assert shown["verdict"] == {"equal": True} and shown["drops"] == {"lost": 10}
    missing = observer("runs", "show", "third", "--db", two_runs)
    assert missing.exit_code == 1 and "it has: first, second" in missing.stderr


def test_two_runs_are_compared(two_runs: Path) -> None:
    shown = observer("runs", "compare", "second", "first", "--db", two_runs).stdout
    assert shown.splitlines()[0] == "the same checkpoint, texts and settings"
    assert "trust of 8 experts that both have: 1 have intervals that do not overlap" in shown
    assert "model layer 0 expert 0: 0.500 and 0.900, intervals apart" in shown
    found = json.loads(observer("runs", "compare", "second", "first", "--db", two_runs, "--json").stdout)
    assert found["experts"] == 8 and found["changes"][0]["apart"] == 1


def test_a_deleted_run_leaves_nothing_and_the_other_run_everything(two_runs: Path) -> None:
    folder = two_runs.with_name("r-trace") / "1"
    folder.mkdir(parents=True)
    assert observer("runs", "delete", "first", "--db", two_runs, input="n\n").exit_code == 1
    assert ask(two_runs, "SELECT COUNT(*) FROM run") == [(2,)] and folder.exists()
    assert observer("runs", "delete", "first", "--db", two_runs, "--yes").exit_code == 0
    tables = [name for (name,) in ask(two_runs, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in set(tables) - {"alembic_version"}:
        assert ask(two_runs, f"SELECT COUNT(*) FROM {table} WHERE run_id = 1") == [(0,)], table
    assert ask(two_runs, "SELECT COUNT(*) FROM expert_trust") == [(24,)] and not folder.exists()


def test_a_killed_run_is_closed_and_a_live_one_is_left_alone(tmp_path: Path) -> None:
    db = tmp_path / "r.db"
    write_run(db, finish=False)
    assert "(killed)" in observer("runs", "list", "--db", db).stdout
    with held(db):
        assert is_live(db, 1) and not is_live(db, 2)
        assert "(going on)" in observer("runs", "list", "--db", db).stdout
        for command in (["recover", "one"], ["delete", "one", "--yes"]):  # and neither can another job go on with it
            refused = observer("runs", *command, "--db", db)
            assert refused.exit_code == 1 and "run 'one' is going on in another process" in refused.stderr
    assert not is_live(db, 1)
    closed = observer("runs", "recover", "one", "--db", db)
    assert closed.exit_code == 0 and "closed as an error" in closed.stdout
    assert ask(db, "SELECT status, error, finished_at = heartbeat_at FROM run") == [
        ("error", "the job ended without closing the run", 1)
    ]
    assert "was closed already" in observer("runs", "recover", "one", "--db", db).stdout


def test_two_jobs_in_one_record_both_end(tmp_path: Path) -> None:
    db = tmp_path / "r.db"
    settings = ("--no-verify", "--limit", "16", "--max-tokens", "16")
    command = [sys.executable, "-m", "observer", "run", "--db", str(db), *settings]
    jobs = [
        subprocess.Popen([*command, "--run", name], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("b", "c")
    ]
    for running in jobs:
        _, said = running.communicate()
        assert running.returncode == 0, said
    assert ask(db, "SELECT name, status, sequences FROM v_run ORDER BY name") == [
        ("b", "done", 16),
        ("c", "done", 16),
    ]
    with closing(sqlite3.connect(db)) as connection:
        trust = "SELECT layer, expert, context, trust FROM v_expert_trust WHERE run_id = ? ORDER BY 1, 2, 3"
        rows = [connection.execute(trust, (run,)).fetchall() for run in (1, 2)]
    assert rows[0] == rows[1]


def test_a_record_that_another_program_locks_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BUSY_TIMEOUT_MS", 100)
    with closing(sqlite3.connect(tmp_path / "r.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseError, match="is locked by another program"):
            open_db(tmp_path / "r.db")


def test_a_loop_goes_on_until_its_limit_in_an_order_of_its_seed(tmp_path: Path) -> None:
    orders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        settings = ("--limit", 3, "--loop", "--seed", seed, "--total-tokens", 100, "--batch", 2, "--max-tokens", 16)
        result = observer("run", "--db", tmp_path / "r.db", "--run", name, "--no-verify", *settings)
        assert result.exit_code == 0 and "\nTexts 8, tokens " in result.stdout, result.output
        rows = "SELECT text_id FROM v_sequence JOIN v_run USING (run_id) WHERE name = '{}' ORDER BY ordinal"
        orders.append([row[0] for row in ask(tmp_path / "r.db", rows.format(name))])
    assert orders[0] == orders[1] != orders[2] and len(orders[0]) == 8
    assert len(set(orders[0][:3])) == len(set(orders[0][3:6])) == 3
    assert ask(tmp_path / "r.db", "SELECT DISTINCT sequences_planned FROM v_run") == [(0,)]


def test_no_time_left_ends_the_job_and_the_same_command_goes_on(tmp_path: Path) -> None:
    arguments = ("run", "--db", tmp_path / "r.db", "--run", "it", *QUICK)
    assert observer(*arguments, "--time-limit", "0").exit_code == 0
    assert ask(tmp_path / "r.db", "SELECT status, sequences FROM v_run") == [("done", 0)]
    assert observer(*arguments).exit_code == 0
    assert ask(tmp_path / "r.db", "SELECT status, sequences FROM v_run") == [("done", 2)]


def test_a_run_whose_state_was_dropped_cannot_go_on_and_keeps_what_it_has(tmp_path: Path) -> None:
    arguments = ("run", "--db", tmp_path / "r.db", "--run", "it", *QUICK)
    assert observer(*arguments).exit_code == 0
    assert observer("db", "prune", "--db", tmp_path / "r.db", "--run", "it", "--drop", "state").exit_code == 0
    refused = observer(*arguments)
    assert refused.exit_code == 1 and "holds no state of this run to go on from" in refused.stderr
    assert ask(tmp_path / "r.db", "SELECT status, sequences, attempts FROM v_run") == [("done", 2, 1)]
    assert ask(tmp_path / "r.db", "SELECT COUNT(*) FROM v_window") == [(1,)]


def test_a_job_whose_run_another_process_works_on_is_refused(tmp_path: Path) -> None:
    db = tmp_path / "r.db"
    arguments = ("run", "--db", db, "--run", "one", *QUICK)
    assert observer(*arguments).exit_code == 0
    with held(db):
        refused = observer(*arguments)
        assert refused.exit_code == 1 and "run 'one' is going on in another process" in refused.stderr
    assert ask(db, "SELECT status, attempts FROM v_run") == [("done", 1)]


def test_a_reader_that_stays_does_not_stop_a_writer(tmp_path: Path) -> None:
    db = tmp_path / "r.db"
    write_run(db, "before", 1)
    with closing(sqlite3.connect(db, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT COUNT(*) FROM v_run").fetchone() == (1,)
        write_run(db, "after", 6)
        assert reader.execute("SELECT COUNT(*) FROM v_run").fetchone() == (1,)
    assert ask(db, "SELECT COUNT(*) FROM v_run") == [(2,)]
