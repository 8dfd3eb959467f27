from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import dashboard
from dashboard.contract import RECORD_VARIABLE
from tests.dashboard.conftest import Sql

APP = Path(dashboard.__file__).with_name("app.py")


def ago(seconds: int) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


@pytest.fixture
def page(record: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    return page_on(record, monkeypatch)


def page_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv(RECORD_VARIABLE, str(path))
    return AppTest.from_file(APP, default_timeout=30)


def visit(page: AppTest, **query: str) -> AppTest:
    for key, value in query.items():
        page.query_params[key] = value
    page.run()
    assert not page.exception
    return page


def texts(page: AppTest) -> list[str]:
    return [text.value for text in page.text]


def test_the_newest_run_is_shown_and_named_in_the_url(page: AppTest):
    visit(page)
    assert texts(page)[0] == "omni"
    assert page.query_params["run"] in ("omni", ["omni"])
    assert page.selectbox(key="context").options == ["all", "code", "dialogue", "prose"]


def test_the_header_states_the_run(page: AppTest):
    visit(page, run="small")
    assert texts(page) == ["small", "done", "123,456", "2.345", "75.0%", "equal", "100%"]
    assert not page.warning


@pytest.mark.parametrize(("run", "maps"), [("omni", 2), ("small", 1)])
def test_each_component_has_a_map(page: AppTest, run: str, maps: int):
    assert len(visit(page, run=run).get("vega_lite_chart")) == maps


def test_dropped_events_are_announced(page: AppTest):
    (warning,) = visit(page, run="omni").warning
    assert warning.value == "1,000 of 10,000 events were not recorded: the statistics below rest on 90.0% of them."


def test_a_run_without_heartbeat_is_not_called_running(page: AppTest, sql: Sql):
    sql(f"update run set heartbeat_at = '{ago(10)}' where run_id = 2")
    assert texts(visit(page, run="omni"))[1] == "running"
    beat = ago(90)
    sql(f"update run set heartbeat_at = '{beat}' where run_id = 2")
    assert texts(visit(page))[1] == f"unfinished (no heartbeat since {beat[:10]} {beat[11:19]} UTC)"


def test_a_link_shows_its_expert_in_its_context(page: AppTest, sql: Sql):
    visit(page, run="omni", context="code", colour="load", component="talker", layer="1", expert="5")
    where = "run_id = 2 and component = 'talker' and layer = 1 and expert = 5"
    rows = sql(f"select * from v_expert_trust where {where} order by context != '*', context")
    (row,) = [row for row in rows if row["context"] == "code"]
    assert texts(page)[7:9] == [f"{row['trust']:.3f}", f"{row['trust_low']:.3f} to {row['trust_high']:.3f}"]
    assert texts(page)[12] == f"{row['uses']:,d}"
    table = page.dataframe[0].value
    assert list(table["context"]) == ["all", "code", "dialogue", "prose"]
    assert list(table["trust"]) == [row["trust"] for row in rows]


def test_no_expert_is_shown_before_one_is_chosen(page: AppTest):
    visit(page, run="omni", layer="1")
    assert not page.dataframe
    assert any("Click a cell" in caption.value for caption in page.caption)


def test_an_expert_that_was_never_used_is_said_to_have_no_evidence(page: AppTest):
    visit(page, run="small", layer="3", expert="9")
    assert any("never used in this context" in caption.value for caption in page.caption)


def test_what_the_next_run_does_not_have_is_let_go(page: AppTest):
    visit(page, run="omni", component="thinker", layer="5", expert="9")
    assert page.dataframe
    page.selectbox(key="run").select("small")
    visit(page)
    assert page.selectbox(key="layer").value is None
    assert not page.dataframe


@pytest.mark.parametrize("query", [{"run": "none"}, {"context": "none"}, {"colour": "none"}, {"layer": "99"}])
def test_a_link_to_what_does_not_exist_falls_back(page: AppTest, query: dict[str, str]):
    visit(page, **query)
    assert texts(page)[0] == "omni"
    assert len(page.get("vega_lite_chart")) == 2


def test_names_are_never_read_as_markup(page: AppTest, sql: Sql):
    name = "<b>x</b> **y** ![z](https://example.org/z.png)"
    sql(f"update run set name = '{name}' where run_id = 2")
    sql(f"update expert_trust set context = '{name}' where run_id = 2 and context = 'code'")
    sql(f"update expert_trust set component = '{name}' where run_id = 2 and component = 'talker'")
    visit(page, run=name, context=name, component=name, layer="0", expert="0")
    assert texts(page)[0] == name
    assert page.dataframe
    marked_up = [*page.markdown, *page.caption, *page.title, *page.subheader, *page.warning, *page.info]
    assert not [element.value for element in marked_up if "x</b>" in element.value]


def test_an_error_is_shown_as_it_is(page: AppTest, sql: Sql):
    sql("update run set status = 'error', error = '**disk** full' where run_id = 2")
    visit(page, run="omni")
    assert page.code[0].value == "**disk** full"


def test_without_a_named_record_the_page_says_how_to_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(RECORD_VARIABLE, raising=False)
    page = visit(AppTest.from_file(APP, default_timeout=30))
    assert "No record was named" in page.warning[0].value
    assert page.code[0].value == "python -m dashboard --db FILE"


def test_without_a_file_the_page_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = visit(page_on(tmp_path / "none.db", monkeypatch))
    assert "no record at this path" in page.warning[0].value
    assert "observer run" in page.warning[0].value
    assert page.code[0].value == str(tmp_path / "none.db")


@pytest.mark.parametrize("content", [b"no database, but long enough to be read as one" * 40, b""])
def test_on_another_file_the_page_says_what_a_record_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
):
    path = tmp_path / "some.db"
    path.write_bytes(content)
    page = visit(page_on(path, monkeypatch))
    assert "not a record" in page.warning[0].value
    assert str(path) in page.code[0].value


def test_a_record_without_runs_says_how_to_start_one(page: AppTest, sql: Sql):
    for table in ("expert_trust", "expert", "score_window", "sequence", "run"):
        sql(f"delete from {table}")
    visit(page)
    assert "holds no runs yet" in page.warning[0].value
    assert not page.selectbox


@pytest.mark.parametrize(("status", "advice"), [("started", "refreshes by itself"), ("done", "Choose another run")])
def test_a_run_without_trust_says_whether_to_wait(page: AppTest, sql: Sql, status: str, advice: str):
    sql("delete from expert_trust where run_id = 2")
    sql(f"update run set status = '{status}', heartbeat_at = '{ago(0)}' where run_id = 2")
    visit(page, run="omni")
    assert advice in page.info[0].value
    assert texts(page)[0] == "omni"
    assert not page.get("vega_lite_chart")


def test_a_record_that_appears_is_shown_without_a_restart(record: Path, monkeypatch: pytest.MonkeyPatch):
    elsewhere = record.with_name("later.db")
    page = visit(page_on(elsewhere, monkeypatch))
    assert page.warning
    elsewhere.write_bytes(record.read_bytes())
    assert texts(visit(page))[0] == "omni"
