"""Records to test on; they are written by record.py in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dashboard.connection import Mirror

RECORD = Path(__file__).with_name("record.py")
TABLES = (
    *("what_if", "expert_window", "salience", "residency_event", "coactivation", "gap", "validation", "trace_file"),
    *("expert_trust", "expert", "score_window", "sequence", "run"),
)
Sql = Callable[..., list[dict[str, Any]]]


def _record(*arguments: str) -> str:
    return subprocess.run([sys.executable, RECORD, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("record") / "record #1.db"
    _record("make", str(path))
    return path


@pytest.fixture
def record(made: Path, tmp_path: Path) -> Path:
    """A record of this test alone."""
    path = tmp_path / made.name
    path.write_bytes(made.read_bytes())
    return path


@pytest.fixture(scope="session")
def sql_on() -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Run statements on any record, in another process."""
    command = [sys.executable, str(RECORD), "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        requests, answers = process.stdin, process.stdout
        assert requests is not None
        assert answers is not None

        def run(path: Path, *statements: str) -> list[dict[str, Any]]:
            requests.write(json.dumps([str(path), *statements]) + "\n")
            requests.flush()
            rows: list[dict[str, Any]] = json.loads(answers.readline())
            return rows

        yield run
        requests.close()


@pytest.fixture
def sql(record: Path, sql_on: Callable[..., list[dict[str, Any]]]) -> Sql:
    """Run statements on the record, in another process."""
    return lambda *statements: sql_on(record, *statements)


@pytest.fixture(scope="session")
def shared_mirror(made: Path) -> Mirror:
    """A mirror of a record that nobody changes."""
    mirror = Mirror(made)
    mirror.sync()
    return mirror


@pytest.fixture
def mirror(request: pytest.FixtureRequest) -> Mirror:
    """A mirror of this test's own record if it may change that, else the one of all."""
    if "sql" not in request.fixturenames:
        shared: Mirror = request.getfixturevalue("shared_mirror")
        return shared
    mirror = Mirror(request.getfixturevalue("record"))
    mirror.sync()
    return mirror
