"""A killed job and bad input: a sentence, an exit code, and nothing lost of what was recorded before."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from segmoe.embedded import MODEL
from tests.observer.asking import ask, observer


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A record that holds one finished run."""
    db = tmp_path / "record.db"
    result = observer("run", "--db", db, "--run", "before", "--no-verify", "--limit", 2, "--max-tokens", 16)
    assert result.exit_code == 0, result.output
    return db


def test_kill_9_leaves_whole_windows_and_an_unfinished_run(recorded: Path) -> None:
    endless = ("--loop", "--total-tokens", "1000000000", "--no-verify")
    command = [sys.executable, "-m", "observer", "run", "--db", str(recorded), "--run", "killed", *endless]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as job:
        windows = "SELECT COUNT(*) FROM v_window JOIN v_run USING (run_id) WHERE name = 'killed'"
        try:
            while ask(recorded, windows)[0][0] < 2 and job.poll() is None:
                time.sleep(0.05)
        finally:
            job.kill()
    assert job.returncode == -signal.SIGKILL, "the job ended before it could be killed"
    assert ask(recorded, "PRAGMA integrity_check") == [("ok",)]
    assert ask(recorded, "SELECT name, status, finished_at = '' FROM v_run ORDER BY run_id") == [
        ("before", "done", 0),
        ("killed", "started", 1),
    ]
    totals = ask(recorded, "SELECT tokens, sequences FROM v_run WHERE name = 'killed'")
    in_windows = "SELECT SUM(w.tokens) FROM v_window w JOIN v_run r USING (run_id) WHERE r.name = 'killed'"
    texts = "SELECT COUNT(*) FROM v_sequence s JOIN v_run r USING (run_id) WHERE r.name = 'killed'"
    assert totals[0][0] >= ask(recorded, in_windows)[0][0] > 0
    assert totals[0][1] == ask(recorded, texts)[0][0] > 0
    report = observer("report", "--db", recorded, "--run", "killed")
    assert report.exit_code == 0 and "Run killed: started" in report.stdout


@pytest.mark.parametrize("damage", ["no folder", "no shard", "truncated shard", "corpus", "newer record"])
def test_bad_input_is_one_line_and_nothing_recorded_is_lost(recorded: Path, tmp_path: Path, damage: str) -> None:
    model, corpus = Path(shutil.copytree(MODEL, tmp_path / "model")), tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "1", "context": "c", "text": "t"}\n')
    shard = model / "model-00002-of-00003.safetensors"
    if damage == "no folder":
        shutil.rmtree(model)
    elif damage == "no shard":
        shard.unlink()
    elif damage == "truncated shard":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "corpus":
        corpus.write_text('{"id": "1", "context": "c", "text": "t"}\nnot JSON\n')
    else:
        with closing(sqlite3.connect(recorded)) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = '9999'")
    tables = ("run", "sequence", "score_window", "expert", "expert_trust")
    before = [ask(recorded, f"SELECT * FROM {table}") for table in tables]
    result = observer("run", "--db", recorded, "--model", model, "--corpus", corpus)
    sentence = {
        "no folder": "is not a folder; give the folder that holds",
        "no shard": "lacks 1 shards (model-00002-of-00003.safetensors)",
        "truncated shard": "model-00002-of-00003.safetensors is truncated: its header promises",
        "corpus": "is not JSON",
        "newer record": "was written by a newer version",
    }[damage]
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1 and sentence in result.stderr and "Traceback" not in result.output
    assert [ask(recorded, f"SELECT * FROM {table}") for table in tables] == before


def test_a_budget_below_one_is_a_usage_error(tmp_path: Path) -> None:
    result = observer("run", "--db", tmp_path / "r.db", "--experts", 0)
    assert result.exit_code == 2 and "not in the range x>=1" in result.stderr
    assert not (tmp_path / "r.db").exists()
