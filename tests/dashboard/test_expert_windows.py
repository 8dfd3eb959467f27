"""What is read of the view of millions of rows, against what SQLite's own process says of it."""

from pathlib import Path

import pytest

from dashboard import expert_windows
from dashboard.contract import EXPERT_WINDOWS, VIEWS
from tests.dashboard.conftest import Sql


@pytest.mark.parametrize("key", [(1, "model", 2, 12), (2, "talker", 1, 5)])
def test_an_expert_is_read_in_all_its_windows(record: Path, sql: Sql, key: tuple):
    run_id, component, layer, expert = key
    where = f"run_id = {run_id} and component = '{component}' and layer = {layer} and expert = {expert}"
    columns = ", ".join(VIEWS[EXPERT_WINDOWS].columns)
    there = sql(f"select {columns} from v_expert_window where {where} order by window_index")
    assert expert_windows.of_expert(record, *key).sort_by("window_index").to_pylist() == there
    assert there


def test_a_window_is_read_with_all_its_experts(record: Path, sql: Sql):
    columns = ", ".join(VIEWS[EXPERT_WINDOWS].columns)
    there = sql(f"select {columns} from v_expert_window where run_id = 1 and window_index = 4 order by layer, expert")
    assert len(there) == 160
    rows = expert_windows.of_window(record, 1, 4).sort_by([("layer", "ascending"), ("expert", "ascending")])
    assert rows.to_pylist() == there


def test_what_is_not_there_has_no_rows_but_its_types(record: Path):
    for none in (expert_windows.of_window(record, 1, 99), expert_windows.of_expert(record, 1, "model", 99, 0)):
        assert none.num_rows == 0
        assert str(none.schema.field("component").type) == "string"
