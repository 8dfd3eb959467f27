"""Which columns a statement may read: too many cost time, one too few would be an error."""

from pathlib import Path

import duckdb
import pytest

from dashboard.console import Console
from dashboard.contract import VIEWS
from dashboard.questions import folder, questions
from dashboard.statement import permit
from tests.dashboard.conftest import Sql


@pytest.fixture(scope="module")
def connection():
    with duckdb.connect() as connection:
        yield connection


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("select e.trust, LAYER from v_expert_window e where e.run_id = 1", {"e", "trust", "layer", "run_id"}),
        ("select count(*) from v_expert_window", set()),
        ("select 1 from v_expert_window a join v_window b using (run_id)", {"run_id"}),
        ('explain select "load" from v_expert_window', {"load"}),
        ("with w as (select layer as x from v_expert_window) select x from w", {"layer", "x"}),
        ("select w.trust, t.uses from v_expert_window w join v_expert_trust t using (layer)", {"w", "trust", "layer"}),
        ("select t.uses from (select t.load from v_expert_window t), v_expert_trust t", {"t", "uses", "load"}),
        ("select main.v_window.nll from v_window, v_expert_window", {"main", "v_window", "nll"}),
    ],
)
def test_columns_are_those_that_are_named(connection: duckdb.DuckDBPyConnection, sql: str, columns: set[str]):
    assert permit(connection, sql).columns == columns


@pytest.mark.parametrize(
    "sql",
    [
        "from v_expert_window",
        "table v_expert_window",
        "select * exclude (trust) from v_expert_window",
        "select columns('tr.*') from v_expert_window",
        "select a.layer from v_expert_window a natural join v_window b",
        "select e from v_expert_window e",
        "select (e).trust from v_expert_window e",
        "select unnest(v_expert_window) from v_expert_window",
        "select x.a from v_expert_window x(a, b)",
        "with w as (from v_expert_window) select layer from w",
        "summarize v_expert_window",
        "unpivot v_expert_window on trust, load into name n value v",
    ],
)
def test_rows_as_a_whole_are_all_columns(connection: duckdb.DuckDBPyConnection, sql: str):
    assert permit(connection, sql).columns is None


def test_the_named_questions_do_not_read_all_columns_of_all_windows(connection: duckdb.DuckDBPyConnection):
    for question in questions(folder()).values():
        statement = permit(connection, question.sql)
        if "v_expert_window" in statement.views:
            assert statement.columns is not None, question.name
            assert len(statement.columns & VIEWS["v_expert_window"].columns.keys()) < 9, question.name


def test_answers_are_the_same_whatever_was_copied_before(record: Path, sql: Sql):
    ((uses, trust),) = [tuple(row.values()) for row in sql("select sum(uses), sum(trust) from v_expert_window")]
    console = Console(record)
    told = []
    try:
        console.copy("select sum(uses) from v_expert_window", lambda view, rows: told.append((view, rows)))
        assert ("v_expert_window", 1920) in told
        for query, value in (
            ("select sum(uses) as x from v_expert_window", uses),
            ("select sum(trust) as x from v_expert_window", trust),
            ("select count(columns(*)) from v_expert_window", 2040),
            ("select sum(uses) as x from v_expert_window", uses),
        ):
            answer = console.run(query)
            assert answer.error == ""
            first = answer.table.to_pylist()[0]
            assert list(first.values()) == [pytest.approx(value)] * len(first)
        assert len(first) == 1
        whole = console.run("select * from v_expert_window limit 1").table
        assert whole.column_names == [*VIEWS["v_expert_window"].columns]
        assert "trsut" in console.run("select trsut from v_expert_window").error
    finally:
        console.close()
