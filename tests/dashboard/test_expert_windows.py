"""What is read of the view of millions of rows, against what SQLite's own process says of it."""

from pathlib import Path

import pytest

from dashboard.contract import EXPERT_WINDOWS, VIEWS
from dashboard.expert_windows import ExpertWindows
from tests.dashboard.conftest import Sql

SUMS = (
    "select component, layer, expert, sum(hits) as hits, sum(misses) as misses from v_expert_window"
    " where run_id = {run_id} group by component, layer, expert order by component, layer, expert"
)


@pytest.fixture
def expert_windows(record: Path) -> ExpertWindows:
    return ExpertWindows(record)


def totals(expert_windows: ExpertWindows, run_id: int) -> tuple[list[dict], int]:
    """Totals added up, and how many rows were read for them."""
    read = [0]
    found = expert_windows.totals(run_id, lambda view, rows: read.append(rows))
    keys = ["component", "layer", "expert"]
    summed = found.group_by(keys).aggregate([("hits", "sum"), ("misses", "sum")])
    summed = summed.rename_columns({"hits_sum": "hits", "misses_sum": "misses"}).select([*keys, "hits", "misses"])
    return summed.sort_by([(key, "ascending") for key in keys]).to_pylist(), read[-1]


def long_run(sql: Sql, windows: int) -> None:
    """Let run 2 have so many windows, each like its first but for its counts."""
    names = [name for name in VIEWS[EXPERT_WINDOWS].columns if name not in ("window_index", "hits", "misses")]
    columns = ", ".join(names)
    series = f"with recursive s(i) as (select 1 union all select i + 1 from s where i + 1 < {windows})"
    same = "first_step, last_step, first_token, last_token, phase, nll_sum, predicted, loads, evictions, bytes_read"
    sql(
        f"insert into score_window (run_id, window_index, last_window, tokens, hits, misses, wall_ns, {same})"
        f" {series} select run_id, i, i, tokens, i, 1, 1, {same} from score_window, s"
        " where run_id = 2 and window_index = 0",
        f"insert into expert_window (window_index, hits, misses, {columns}) {series}"
        f" select i, i % 7 + expert, layer, {columns} from expert_window, s where run_id = 2 and window_index = 0",
    )


@pytest.mark.parametrize("key", [(1, "model", 2, 12), (2, "talker", 1, 5)])
def test_an_expert_is_read_in_all_its_windows(expert_windows: ExpertWindows, sql: Sql, key: tuple):
    run_id, component, layer, expert = key
    where = f"run_id = {run_id} and component = '{component}' and layer = {layer} and expert = {expert}"
    columns = ", ".join(VIEWS[EXPERT_WINDOWS].columns)
    there = sql(f"select {columns} from v_expert_window where {where} order by window_index")
    assert expert_windows.of_expert(*key).sort_by("window_index").to_pylist() == there
    assert there


def test_a_window_is_read_with_all_its_experts(expert_windows: ExpertWindows, sql: Sql):
    columns = ", ".join(VIEWS[EXPERT_WINDOWS].columns)
    there = sql(f"select {columns} from v_expert_window where run_id = 1 and window_index = 4 order by layer, expert")
    assert len(there) == 160
    rows = expert_windows.of_window(1, 4).sort_by([("layer", "ascending"), ("expert", "ascending")])
    assert rows.to_pylist() == there


def test_what_is_not_there_has_no_rows_but_its_types(expert_windows: ExpertWindows):
    for none in (
        expert_windows.of_window(1, 99),
        expert_windows.of_expert(1, "model", 99, 0),
        expert_windows.totals(99),
    ):
        assert none.num_rows == 0
        assert str(none.schema.field("component").type) == "string"


@pytest.mark.parametrize("run_id", [1, 2])
def test_totals_are_sums_over_all_windows(expert_windows: ExpertWindows, sql: Sql, run_id: int):
    found, _ = totals(expert_windows, run_id)
    assert found == sql(SUMS.format(run_id=run_id))


def test_of_a_run_that_goes_on_only_its_last_stretch_is_read_again(expert_windows: ExpertWindows, sql: Sql):
    long_run(sql, 40)
    experts = 6 * 16 + 3 * 8
    assert totals(expert_windows, 2) == (sql(SUMS.format(run_id=2)), 40 * experts)
    assert totals(expert_windows, 2)[1] == 0
    sql(*(f"delete from {name} where run_id = 2 and window_index = 39" for name in ("expert_window", "score_window")))
    assert totals(expert_windows, 2) == (sql(SUMS.format(run_id=2)), 7 * experts)


def test_merged_windows_are_added_up_anew(expert_windows: ExpertWindows, sql: Sql):
    long_run(sql, 40)
    before, _ = totals(expert_windows, 2)
    sql(
        "update expert_window as a set hits = a.hits + b.hits, misses = a.misses + b.misses from expert_window b"
        " where a.run_id = 2 and b.run_id = 2 and a.window_index = 15 and b.window_index = 16"
        " and b.component = a.component and b.layer = a.layer and b.expert = a.expert",
        "update score_window set last_window = 16, tokens = tokens * 2 where run_id = 2 and window_index = 15",
        *(f"delete from {name} where run_id = 2 and window_index = 16" for name in ("expert_window", "score_window")),
    )
    after, read = totals(expert_windows, 2)
    assert after == before == sql(SUMS.format(run_id=2))
    assert read == (16 + 15) * 120, "the two stretches that the pair lay in"


def test_another_run_under_the_same_id_keeps_nothing_of_the_old_one(expert_windows: ExpertWindows, sql: Sql):
    totals(expert_windows, 1)
    sql("update run set name = 'other' where run_id = 1", "update expert_window set hits = hits + 1 where run_id = 1")
    assert totals(expert_windows, 1)[0] == sql(SUMS.format(run_id=1))
