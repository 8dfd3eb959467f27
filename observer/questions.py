"""The questions that are shipped as SQL, and asking them of a record. The SQL itself is in migrations/questions/."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import NamedTuple, TextIO

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from observer.db.session import reading
from observer.runs import find_run


class Question(NamedTuple):
    """One file; it runs on SQLite and on DuckDB, with the parameter $run_id (and $other_id where it compares)."""

    name: str
    title: str  # its first line
    sql: str

    @property
    def compares(self) -> bool:
        """Whether it needs another run."""
        return "$other_id" in self.sql


def folder() -> Path:
    """Where the files are, with the migrations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_migrations" / "questions"
    return installed if installed.is_dir() else package.parent / "migrations" / "questions"


def questions() -> dict[str, Question]:
    """Read the questions in the order of their numbers."""
    found = {}
    for path in sorted(folder().glob("*.sql")):
        sql = path.read_text(encoding="utf-8")
        name = path.stem.split("_", 1)[1]
        found[name] = Question(name, sql.split("\n", 1)[0].removeprefix("-- "), sql)
    return found


def answer(engine: Engine, question: Question, run: str | None, out: TextIO, other: str | None = None) -> int:
    """Write the answer for the named run (the last one without a name) as CSV; return how many rows it has."""
    values = {"run_id": find_run(engine, run)["run_id"]}
    if question.compares:
        values["other_id"] = find_run(engine, other)["run_id"]
    with reading(engine).begin() as connection:
        try:
            connection.exec_driver_sql("SELECT LN(1.0), SQRT(1.0)")
        except OperationalError:  # an SQLite without its mathematical functions
            driver = connection.connection.driver_connection
            assert driver is not None
            for name, function in (("LN", math.log), ("SQRT", math.sqrt)):
                driver.create_function(name, 1, function, deterministic=True)
        result = connection.exec_driver_sql(question.sql, values)
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(result.keys())
        rows = result.fetchall()
        writer.writerows(tuple(row) for row in rows)
    return len(rows)
