import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import questions, schema
from dashboard.connection import Mirror
from dashboard.console import Console
from tests.dashboard.conftest import Sql
from tests.dashboard.pages import open_page, texts, visit

NAMED = questions.questions(questions.folder())


@pytest.fixture
def page(record: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    return open_page("sql", record, monkeypatch)


@pytest.fixture(scope="module")
def console(made: Path):
    console = Console(made, seconds=60)
    yield console
    console.close()


def result(page: AppTest):
    """The answer's frame; the tables of the schema come first."""
    (frame,) = [element.value for element in page.columns[0].dataframe]
    return frame


def test_there_are_named_questions():
    assert len(NAMED) >= 13
    for question in NAMED.values():
        assert question.title.endswith("?")


@pytest.mark.parametrize("name", NAMED)
def test_each_named_question_is_answered(console: Console, name: str):
    values = {"run_id": 1, "other_id": 1}
    sql = NAMED[name].sql
    answer = console.run(sql, {name: values[name] for name in questions.parameters(sql)})
    assert answer.error == ""
    assert answer.table is not None
    assert answer.table.num_rows > 0


def test_a_link_to_a_question_shows_its_answer(page: AppTest, sql: Sql):
    visit(page, question="trust", run="small")
    assert page.text_area(key="sql").value == NAMED["trust"].sql
    (there,) = sql("select count(*) as n from v_expert_trust where run_id = 1")
    assert len(result(page)) == there["n"]
    assert list(result(page)["trust"]) == sorted(result(page)["trust"], reverse=True)


def test_choosing_a_question_writes_its_sql(page: AppTest):
    visit(page)
    assert page.info
    page.selectbox(key="question").select("parity")
    visit(page)
    assert page.text_area(key="sql").value == NAMED["parity"].sql
    assert list(result(page)["name"]) == ["omni"]
    page.selectbox(key="run").select("small")
    assert list(result(visit(page))["name"]) == ["small"]


def test_a_link_to_a_query_shows_its_answer(page: AppTest):
    visit(page, sql="select name from v_run where tokens > $least order by name", p_least="5000")
    assert list(result(page)["name"]) == ["small"]
    assert "1 rows" in texts(page)


def test_a_query_that_is_written_is_answered(page: AppTest):
    visit(page)
    page.text_area(key="sql").set_value("select 7 as seven")
    visit(page)
    assert list(result(page)["seven"]) == [7]


def test_a_refused_query_says_why(page: AppTest):
    visit(page, sql="delete from v_run")
    assert "not answered" in page.error[0].value
    assert page.columns[0].code[0].value == "Only SELECT and EXPLAIN are allowed; this is DELETE."


def test_a_cut_answer_says_so(page: AppTest):
    visit(page, sql="from range(10001)")
    assert "10,000" in page.columns[0].warning[0].value
    assert len(result(page)) == 10_000


def test_an_error_is_never_markup(page: AppTest):
    visit(page, sql="select '<b>x</b>' from \"<b>y</b>\"")
    assert "<b>y</b>" in page.columns[0].code[0].value
    assert not [element for element in page.markdown if "<b>" in element.value]


def test_the_schema_is_beside_it_in_the_records_own_words(page: AppTest, mirror: Mirror):
    visit(page)
    assert [view.name for view in schema.describe(mirror.definitions)] == [e.label for e in page.columns[1].expander]
    for view in schema.describe(mirror.definitions):
        assert view.about
        assert sum(bool(column.about) for column in view.columns) >= 0.6 * len(view.columns)


def test_nothing_is_read_from_a_run_that_is_not_named():
    assert questions.parameters("select 1") == []
    assert questions.parameters("select \"$a\", 'it''s $b', $c /* $d */ -- $e") == ["c"]


def test_limits_are_stated(page: AppTest):
    visit(page)
    (limits,) = [caption.value for caption in page.caption if "one SELECT or EXPLAIN" in caption.value]
    assert re.search(r"5 s.*10,000 rows.*16\.0 MiB", limits)
