"""What every page shows when there is nothing, or not everything, to show."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dashboard import page as page_module
from dashboard.app import PAGES
from dashboard.contract import RECORD_VARIABLE
from tests.dashboard.conftest import TABLES, Sql
from tests.dashboard.pages import APP, ago, charts, fact, open_page, texts, visit

FIGURES = [view for view in PAGES if view != "sql"]


def test_each_page_has_a_file_and_an_explanation():
    parts = {"__init__", "course", "expert_figures", "what_if"}  # of pages, no pages themselves
    files = {path.stem for path in APP.parent.glob("views/*.py")} - parts
    assert files == set(PAGES)
    assert all(about.endswith(".") for _, about in PAGES.values())


def test_without_a_named_record_the_page_says_how_to_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(RECORD_VARIABLE, raising=False)
    page = visit(AppTest.from_file(APP, default_timeout=60))
    assert "No record was named" in page.warning[0].value
    assert page.code[0].value == "python -m dashboard --db FILE"


def test_without_a_file_the_page_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    page = visit(open_page("overview", tmp_path / "none.db", monkeypatch))
    assert "no record at this path" in page.warning[0].value
    assert "observer run" in page.warning[0].value
    assert page.code[0].value == str(tmp_path / "none.db")


@pytest.mark.parametrize("content", [b"no database, but long enough to be read as one" * 40, b""])
def test_on_another_file_the_page_says_what_a_record_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
):
    path = tmp_path / "some.db"
    path.write_bytes(content)
    page = visit(open_page("overview", path, monkeypatch))
    assert "not a record" in page.warning[0].value
    assert str(path) in page.code[0].value


def test_on_a_newer_record_the_page_says_to_update(record: Path, sql: Sql, monkeypatch: pytest.MonkeyPatch):
    sql("update alembic_version set version_num = '9999'")
    page = visit(open_page("overview", record, monkeypatch))
    assert "later version" in page.warning[0].value
    assert "9999" in page.code[0].value


def test_a_record_that_appears_is_shown_without_a_restart(record: Path, monkeypatch: pytest.MonkeyPatch):
    elsewhere = record.with_name("later.db")
    page = visit(open_page("overview", elsewhere, monkeypatch))
    assert page.warning
    elsewhere.write_bytes(record.read_bytes())
    assert texts(visit(page))[0] == "omni"


@pytest.mark.parametrize("view", PAGES)
def test_a_record_without_runs_says_how_to_start_one(
    view: str, record: Path, sql: Sql, monkeypatch: pytest.MonkeyPatch
):
    sql(*(f"delete from {table}" for table in TABLES))
    page = visit(open_page(view, record, monkeypatch))
    assert "holds no runs yet" in page.warning[0].value
    assert not page.selectbox


@pytest.mark.parametrize("view", FIGURES)
def test_a_run_without_events_says_what_would_bring_them(
    view: str, record: Path, sql: Sql, monkeypatch: pytest.MonkeyPatch
):
    sql(*(f"delete from {table} where run_id = 2" for table in TABLES if table != "run"))
    sql("update run set tokens = 0, events_seen = 0, events_dropped = 0, drops = '{}' where run_id = 2")
    page = visit(open_page(view, record, monkeypatch), run="omni")
    assert page.info
    assert not charts(page)
    assert not page.warning


@pytest.mark.parametrize("view", FIGURES)
def test_what_figures_do_not_rest_on_is_announced(view: str, record: Path, monkeypatch: pytest.MonkeyPatch):
    page = visit(open_page(view, record, monkeypatch), run="omni")
    (warning,) = page.warning
    assert warning.value == "1,000 of 10,000 events were not recorded: the statistics below rest on 90.0% of them."
    page.selectbox(key="run").select("small")
    assert not visit(page).warning


def test_queries_are_told_what_they_do_not_rest_on(record: Path, monkeypatch: pytest.MonkeyPatch):
    page = visit(open_page("sql", record, monkeypatch))
    assert [warning.value for warning in page.warning] == [
        "Of 1 of 2 runs not all events were recorded: the statistics of the worst rest on 90.0% of them."
    ]


@pytest.mark.parametrize("view", FIGURES)
def test_an_error_is_shown_as_it_is(view: str, record: Path, sql: Sql, monkeypatch: pytest.MonkeyPatch):
    sql("update run set status = 'error', error = '**disk** full', parity = 'different' where run_id = 2")
    page = visit(open_page(view, record, monkeypatch), run="omni")
    assert page.code[0].value == "**disk** full"
    assert "differed from the stock model's" in page.error[0].value


NAME = "<b>x</b> **y** ![z](https://example.org/z.png)"


@pytest.mark.parametrize("view", FIGURES)
def test_names_are_never_read_as_markup(view: str, record: Path, sql: Sql, monkeypatch: pytest.MonkeyPatch):
    tables = ("expert", "expert_trust", "expert_window", "salience", "residency_event", "coactivation")
    sql(
        f"update run set name = '{NAME}' where run_id = 1",
        *(f"update {table} set component = '{NAME}' where run_id = 1" for table in tables),
        f"update expert_trust set context = '{NAME}' where run_id = 1 and context = 'code'",
        f"update sequence set context = '{NAME}', text_id = '{NAME}' || ordinal where run_id = 1 and context = 'code'",
        f"update validation set statistic = '{NAME}', scope = '{NAME}' where scope = 'code' and statistic = 'load'",
        f"update residency_event set reason = '{NAME}' where reason = 'prefetch'",
    )
    query = {"run": NAME, "other": "omni", "layer": "2", "expert": "12"}
    page = visit(open_page(view, record, monkeypatch), **query)
    marked_up = [*page.markdown, *page.caption, *page.title, *page.subheader, *page.warning, *page.info, *page.error]
    assert not [element.value for element in marked_up if "x</b>" in element.value or "<script" in element.value]
    assert NAME in texts(page)


@pytest.mark.parametrize("view", FIGURES)
def test_every_chart_and_table_has_an_alternative_text(view: str, record: Path, monkeypatch: pytest.MonkeyPatch):
    page = visit(open_page(view, record, monkeypatch), run="small", other="omni", layer="2", expert="12")
    drawn = [*charts(page), *page.get("arrow_data_frame")]
    assert drawn
    for element in drawn:
        assert len(element.proto.alt) > 20


def test_a_run_that_is_over_is_not_looked_at_again(record: Path, sql: Sql, monkeypatch: pytest.MonkeyPatch):
    # (the timer is a message to the browser, which AppTest does not keep)
    intervals = []
    monkeypatch.setattr("streamlit.fragment", lambda draw, run_every: intervals.append(run_every) or draw)
    sql(f"update run set heartbeat_at = '{ago(-600)}' where run_id = 2")
    visit(open_page("overview", record, monkeypatch), run="small")
    visit(open_page("overview", record, monkeypatch), run="omni")
    assert intervals == [None, page_module.REFRESH_S]
    assert page_module.REFRESH_S < 5


def test_the_queue_of_a_run_is_told_if_the_run_told_of_it(record: Path, monkeypatch: pytest.MonkeyPatch):
    page = visit(open_page("quality", record, monkeypatch), run="omni")
    assert [fact(page, name) for name in ("Queue", "Fullest", "Model waited")] == ["12 events", "50% of 256", "1.5 s"]
    page = visit(open_page("quality", record, monkeypatch), run="small")
    assert "Queue" not in [caption.value for caption in page.caption]
