"""What if, on the residency page."""

import json
import shlex
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from tests.dashboard.conftest import Sql
from tests.dashboard.pages import charts, open_page, visit


@pytest.fixture
def page(record, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    return open_page("residency", record, monkeypatch)


def curves(page: AppTest) -> dict:
    specs = [json.loads(chart.proto.spec) for chart in charts(page)]
    (found,) = [spec for spec in specs if spec["title"]["text"].startswith("Miss ratio")]
    return found


def test_the_curves_name_the_runs_own_setting_and_the_floor(page: AppTest):
    visit(page, run="small")
    spec = curves(page)
    assert spec["title"]["text"] == "Miss ratio by policy and budget, all passes"
    assert " ".join(spec["title"]["subtitle"]).startswith("With 64 experts this run's lru misses 25.0%")
    assert page.multiselect(key="policies").value == ["lru", "use-rate"]
    table = page.dataframe[-1].value
    assert list(table["policy"]) == ["belady", "use-rate", "lru"]


def test_a_link_shows_its_phase_and_its_policies(page: AppTest):
    visit(page, run="small", phase="prefill", policies="use-rate")
    spec = curves(page)
    assert spec["title"]["text"].endswith("prefill")
    assert page.multiselect(key="policies").value == ["use-rate"]


def test_without_curves_the_page_says_which_command_makes_them(page: AppTest, sql: Sql):
    sql("delete from what_if")
    visit(page, run="small")
    command = shlex.split(page.code[-1].value)
    assert [*command[:3], *command[4:]] == ["observer", "plan", "--db", "--run", "small"]
    assert Path(command[3]).exists()
    sql("delete from trace_file", "update run set tokens = tokens + 1 where run_id = 1")
    visit(page, run="small")
    assert "observer run --trace" in page.info[-1].value
