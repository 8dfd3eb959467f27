"""What readers may rely on: the views, their columns and what each means, read from a record itself."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from sqlalchemy import Engine

from observer.db.session import open_db, reading


class ViewColumn(NamedTuple):
    """One column of a view."""

    name: str
    meaning: str  # '' where the name says it


class View(NamedTuple):
    """One view of the record."""

    name: str
    meaning: str  # what a row is
    columns: tuple[ViewColumn, ...]


def views_of(db: Path | None) -> list[View]:
    """Read the views of a record, or without one those that this version makes."""
    if db is None:
        with tempfile.TemporaryDirectory() as folder:
            return views_of_engine(open_db(Path(folder) / "record.db"))
    return views_of_engine(open_db(db, create=False))


def views_of_engine(engine: Engine) -> list[View]:
    """Read the views and let the file go."""
    try:
        return read_views(engine)
    finally:
        engine.dispose()


def read_views(engine: Engine) -> list[View]:
    """Read the views: the run's, then the others in the order of their making."""
    with reading(engine).begin() as connection:
        rows = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type = 'view' ORDER BY name <> 'v_run', rowid"
        )
        return [parse_view(name, sql) for name, sql in rows.fetchall()]


def parse_view(name: str, sql: str) -> View:
    """Take a view's SQL apart: a comment on the view, then a line for each column with its comment.

    >>> parse_view("v", "CREATE VIEW v AS\\n-- a thing\\nSELECT\\n  a,  -- first\\n  1 + 1 AS b\\nFROM t").columns
    (ViewColumn(name='a', meaning='first'), ViewColumn(name='b', meaning=''))
    """
    lines = sql.split("\n")
    meaning = next(line.removeprefix("--").strip() for line in lines if line.startswith("--"))
    columns = []
    for line in lines:
        if line.startswith("  "):
            expression, _, comment = line.partition("--")
            found = re.search(r"(\w+),?\s*$", expression)
            assert found is not None, line
            columns.append(ViewColumn(found[1], comment.strip()))
    return View(name, meaning, tuple(columns))


def markdown(views: list[View]) -> str:
    """Return a reference for people: a heading and a table for each view."""
    parts = []
    for view in views:
        rows = [f"| `{column.name}` | {column.meaning.replace('|', chr(92) + '|')} |" for column in view.columns]
        parts.append("\n".join([f"**`{view.name}`**: {view.meaning}", "", "| column | meaning |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def print_views(views: list[View], console: Console | None = None) -> None:
    """Print the views for people, one column a line."""
    console = Console() if console is None else console
    for view in views:
        console.print(f"{view.name}: {view.meaning}", highlight=False, markup=False, soft_wrap=True)
        width = max(len(column.name) for column in view.columns)
        for column in view.columns:
            line = f"  {column.name:{width}}  {column.meaning}".rstrip()
            console.print(line, highlight=False, markup=False, soft_wrap=True)
