"""Records to test on; they are written by record.py in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
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


@pytest.fixture
def sql(record: Path) -> Sql:
    """Run statements on the record, as another process."""
    return lambda *statements: json.loads(_record("sql", str(record), *statements))


@pytest.fixture
def sql_on() -> Callable[[Path, str], list[dict[str, Any]]]:
    """Run one statement on any record, as another process."""
    return lambda path, statement: json.loads(_record("sql", str(path), statement))


@pytest.fixture
def mirror(record: Path) -> Mirror:
    mirror = Mirror(record)
    mirror.sync()
    return mirror
