"""The named questions that come with the record's tools, and what a query's parameters are. Asking is console.py."""

import re
from pathlib import Path
from typing import NamedTuple

_PARAMETER = re.compile(
    r"\$(?P<name>[a-z_]\w*)|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.IGNORECASE | re.DOTALL
)


class Question(NamedTuple):
    """One file of SQL; it runs on SQLite and on DuckDB."""

    name: str
    title: str  # its first line
    sql: str


def folder() -> Path:
    """Where the files are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_questions"
    return installed if installed.is_dir() else package.parent / "migrations" / "questions"


def questions(files: Path) -> dict[str, Question]:
    """Read the questions in the order of their numbers, by name."""
    found = {}
    for path in sorted(files.glob("*.sql")):
        sql = path.read_text(encoding="utf-8").strip()
        name = path.stem.split("_", 1)[-1]
        found[name] = Question(name, sql.split("\n", 1)[0].removeprefix("-- "), sql)
    return found


def parameters(sql: str) -> list[str]:
    """Name the `$name` parameters in the order in which they come; strings and comments hold none.

    >>> parameters("select '$no', $b -- $neither\\nfrom t where x = $a and y = $b")
    ['b', 'a']
    """
    return list(dict.fromkeys(match["name"] for match in _PARAMETER.finditer(sql) if match["name"]))


def value(text: str) -> int | float | str:
    """Read what a person wrote for a parameter: a number if it is one.

    >>> value("7"), value("0.5"), value("code"), value(" ")
    (7, 0.5, 'code', ' ')
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
