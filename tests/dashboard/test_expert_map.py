import json

import pytest
from streamlit.testing.v1 import AppTest

from tests.dashboard.conftest import Sql
from tests.dashboard.pages import ago, charts, open_page, texts, visit


@pytest.fixture
def page(record, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    return open_page("expert_map", record, monkeypatch)


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
    assert len(charts(visit(page, run=run))) == 2 * maps


def test_a_run_without_heartbeat_is_not_called_running(page: AppTest, sql: Sql):
    sql(f"update run set heartbeat_at = '{ago(-600)}' where run_id = 2")
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
    assert len(charts(page)) == 4


def titles(page: AppTest) -> list[str]:
    return [json.loads(chart.proto.spec)["title"]["text"] for chart in charts(page)]


def subtitle(page: AppTest) -> str:
    return " ".join(json.loads(charts(page)[0].proto.spec)["title"]["subtitle"])


def test_each_component_has_margins_beside_its_map(page: AppTest, sql: Sql):
    visit(page, run="small")
    assert titles(page) == ["Trust of each expert: model, all contexts", "Evenness"]
    assert any("1 was never used" in caption.value for caption in page.caption)


@pytest.mark.parametrize("colour", ["convergence", "load", "residency"])
def test_the_map_is_coloured_by_what_is_chosen(page: AppTest, colour: str):
    visit(page, run="small", colour=colour)
    assert titles(page)[0] == f"{colour.capitalize()} of each expert: model, all contexts"
    assert "1 of 160 experts was never used" in subtitle(page)


def test_an_earlier_window_shows_the_trust_of_then(page: AppTest, sql: Sql):
    visit(page, run="small", window="3")
    (then,) = sql("select max(trust) as top from v_expert_window where run_id = 1 and window_index = 3 and uses > 0")
    assert titles(page)[0] == "Trust of each expert: model, score window 3"
    assert f"to {then['top']:.2f} (" in subtitle(page)


def test_windows_are_offered_where_they_are_known(page: AppTest):
    visit(page, run="small")
    assert page.select_slider(key="window").options == [*map(str, range(12)), "now"]
    page.selectbox(key="context").select("code")
    assert not visit(page).select_slider
    page.selectbox(key="context").select("*")
    page.selectbox(key="run").select("omni")  # it has one window
    assert not visit(page).select_slider


def test_the_difference_to_another_run_is_drawn(page: AppTest, sql: Sql):
    visit(page, run="small", colour="difference")
    assert "no run to compare with" in page.info[0].value
    sql("update expert_trust set component = 'model', trust = 0.0 where run_id = 2 and component = 'talker'")
    sql("update run set tokens = tokens + 1 where run_id = 2")
    page.selectbox(key="other").select("omni")
    visit(page)
    assert titles(page)[0] == "Difference of each expert: model, all contexts, against omni"
    where = "run_id = 1 and context = '*' and layer < 3 and expert < 8"
    (top,) = sql(f"select max(trust) as trust from v_expert_trust where {where}")
    assert f"by {top['trust']:+.2f}; it is higher here for 24 of 24 experts" in subtitle(page)


def test_a_chosen_expert_links_to_its_page(page: AppTest):
    visit(page, run="small", layer="2", expert="12")
    (link,) = page.page_link
    assert "expert" in link.proto.page
    assert "layer=2" in link.proto.query_string
