"""What a person's SQL may be: one SELECT or EXPLAIN of what the mirror holds; and what it reads. No running here."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import duckdb

from dashboard.contract import EXPERT_WINDOWS, VIEWS

TABLE_FUNCTIONS = frozenset(
    [
        "range",
        "generate_series",
        "unnest",
        "repeat",
        "histogram",
        "histogram_values",
        "summary",
        "json_each",
        "json_tree",
        "duckdb_tables",
        "duckdb_columns",
        "duckdb_functions",
        "pragma_table_info",
    ]
)
"""Functions that may stand where a table stands; all others are refused, so that no new one becomes a way out."""

_EXPLAIN = re.compile(r"explain(\s+analyze)?\b(?!\s*\()", re.IGNORECASE)
_COMMENTS = re.compile(r"^(\s+|--[^\n]*(\n|$)|/\*.*?\*/)+", re.DOTALL)


class RefusedError(Exception):
    """The SQL is not one SELECT or EXPLAIN, or it names what is not allowed."""


class Permitted(NamedTuple):
    """A statement that may run."""

    sql: str
    views: frozenset[str]
    columns: frozenset[str] | None
    """All names that may be columns of EXPERT_WINDOWS; None if it may read columns that it does not name."""


def permit(connection: duckdb.DuckDBPyConnection, sql: str) -> Permitted:
    """Return the one statement to run, and what it reads; refuse everything but reading the mirror."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise RefusedError(f"Give exactly one statement; this is {len(statements)}.")
    (statement,) = statements
    text = _COMMENTS.sub("", statement.query)
    if statement.type == duckdb.StatementType.EXPLAIN:
        explain = _EXPLAIN.match(text)
        if explain is None:
            raise RefusedError("Only EXPLAIN and EXPLAIN ANALYZE without options are allowed.")
        inner = permit(connection, text[explain.end() :])
        return inner._replace(sql=f"{explain.group()} {inner.sql}")
    if statement.type != duckdb.StatementType.SELECT:
        kind = statement.type.name.replace("_", " ")
        raise RefusedError(f"Only SELECT and EXPLAIN are allowed; this is {kind}.")
    ((tree,),) = connection.execute("select json_serialize_sql(?)", (text,)).fetchall()
    parsed = json.loads(tree)
    if parsed["error"]:
        raise RefusedError(f"Only SELECT and EXPLAIN are allowed: {parsed['error_message']}.")
    nodes = list(_walk(parsed))
    for node in nodes:
        if node.get("type") == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                raise RefusedError(
                    f"The table function {name} is not allowed; {', '.join(sorted(TABLE_FUNCTIONS))} are."
                )
    views = frozenset(name for node in nodes if (name := str(node.get("table_name", "")).lower()) in VIEWS)
    return Permitted(text, views, _columns(nodes))


def _columns(nodes: list[dict[str, Any]]) -> frozenset[str] | None:
    """Collect the names of columns, or return None where rows are meant as a whole: `*`, natural joins, `select t`."""
    known = [  # expressions, which have a class, have aliases too
        [str(node.get(key, "")).lower() for key in ("table_name", "alias")] for node in nodes if "class" not in node
    ]
    tables = {name for names in known for name in names}
    others = {name for table, alias in known if table != EXPERT_WINDOWS for name in (table, alias) if table}
    others -= {name for names in known if EXPERT_WINDOWS in names for name in names}
    found: set[str] = set()
    for node in nodes:
        names = [str(name).lower() for name in node.get("column_names", [])]
        is_row = len(names) == 1 and names[0] in tables
        if is_row or node.get("class") == "STAR" or node.get("column_name_alias") or node.get("ref_type") == "NATURAL":
            return None
        if not (len(names) == 2 and names[0] in others):
            found.update(names)
        found.update(str(name).lower() for name in node.get("using_columns", []))
    return frozenset(found)


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from _walk(part)
