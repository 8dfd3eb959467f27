from pathlib import Path

import pytest

from dashboard.connection import Mirror
from dashboard.contract import REVISION, VIEWS
from dashboard.record import RecordMissingError, RecordNewerError, RecordUnreadableError
from tests.dashboard.conftest import TABLES, Sql


def rows(mirror: Mirror, sql: str) -> list[dict]:
    return mirror.table(sql).to_pylist()


def test_the_first_sync_copies_every_view(record: Path, sql: Sql):
    mirror = Mirror(record)
    assert mirror.sync()
    for view in VIEWS:
        here, there = rows(mirror, f"from {view}"), sql(f"select {', '.join(VIEWS[view].columns)} from {view}")
        assert here
        assert sorted(map(str, (dict(sorted(row.items())) for row in here))) == sorted(
            map(str, (dict(sorted(row.items())) for row in there))
        )


def test_a_sync_without_change_says_so(mirror: Mirror):
    assert not mirror.sync()


def test_new_windows_and_texts_are_added(mirror: Mirror, sql: Sql):
    sql(
        "insert into score_window (run_id, window_index, last_window, first_step, last_step, first_token, last_token,"
        " phase, tokens, nll_sum, predicted, hits, misses, loads, evictions, bytes_read, wall_ns)"
        " select run_id, 1, 1, 1, 1, 64, 127, phase, tokens, nll_sum, predicted, hits, misses,"
        " loads, evictions, bytes_read, 77 from score_window where run_id = 2"
    )
    sql("insert into sequence values (2, 3, 't3', 'code', 32, 31.0, 31, '')")
    sql("update run set heartbeat_at = '2026-01-02T04:00:00+00:00' where run_id = 2")
    assert mirror.sync()
    windows = "select window_index, wall_ns from v_window where run_id = 2 order by 1"
    assert rows(mirror, windows) == [{"window_index": 0, "wall_ns": 1}, {"window_index": 1, "wall_ns": 77}]
    assert rows(mirror, "select ordinal, nll from v_sequence where run_id = 2 order by 1 desc limit 1") == [
        {"ordinal": 3, "nll": 1.0}
    ]


def test_texts_that_finish_out_of_order_are_found(mirror: Mirror, sql: Sql):
    sql("insert into sequence values (2, 7, 't7', 'code', 32, 31.0, 31, '')")
    sql("update run set sequences = 5 where run_id = 2")
    mirror.sync()
    sql("insert into sequence values (2, 5, 't5', 'code', 32, 31.0, 31, '')")
    sql("update run set sequences = 6 where run_id = 2")
    mirror.sync()
    assert [row["ordinal"] for row in rows(mirror, "from v_sequence where run_id = 2 order by ordinal")] == [
        *(0, 1, 2),
        *(5, 7),
    ]


def test_changed_trust_is_replaced_and_other_runs_keep_theirs(mirror: Mirror, sql: Sql):
    before = rows(mirror, "from v_expert_trust where run_id = 1 order by all")
    count = rows(mirror, "select count(*) as n from v_expert_trust where run_id = 2")
    sql("update expert_trust set trust = 0.5, uses = uses + 1 where run_id = 2")
    sql("update run set tokens = tokens + 64 where run_id = 2")
    assert mirror.sync()
    assert rows(mirror, "select distinct trust from v_expert_trust where run_id = 2") == [{"trust": 0.5}]
    assert rows(mirror, "select count(*) as n from v_expert_trust where run_id = 2") == count
    assert rows(mirror, "from v_expert_trust where run_id = 1 order by all") == before


def test_a_run_that_is_gone_is_forgotten(mirror: Mirror, sql: Sql):
    sql(*(f"delete from {table} where run_id = 1" for table in TABLES))
    assert mirror.sync()
    for view in VIEWS:
        here = [row["run_id"] for row in rows(mirror, f"select distinct run_id from {view}")]
        there = [row["run_id"] for row in sql(f"select distinct run_id from {view}")]
        assert here == there
        assert 1 not in here


def test_windows_that_were_merged_are_read_anew(mirror: Mirror, sql: Sql):
    sql("update score_window set last_window = 1, tokens = 128, last_step = 1 where run_id = 1 and window_index = 0")
    for table in ("score_window", "expert_window"):
        sql(f"delete from {table} where run_id = 1 and window_index = 1")
    sql("update run set tokens = tokens + 64 where run_id = 1")
    assert mirror.sync()
    windows = rows(mirror, "select window_index, tokens from v_window where run_id = 1 order by 1 limit 2")
    assert windows == [{"window_index": 0, "tokens": 128}, {"window_index": 2, "tokens": 64}]
    count = "select count(*) as n from v_expert_window where run_id = 1"
    assert rows(mirror, count) == sql(count) == [{"n": 11 * 5 * 32}]


def test_the_last_of_what_grows_may_still_change(mirror: Mirror, sql: Sql):
    sql("update salience set salience = 0.77 where run_id = 1 and ordinal = 2 and position = 96")
    sql("update run set tokens = tokens + 64 where run_id = 1")
    assert mirror.sync()
    where = "where run_id = 1 and ordinal = 2 and position = 96"
    assert rows(mirror, f"select salience from v_salience {where}") == [{"salience": 0.77}]


def test_evictions_learn_later_when_they_were_undone(mirror: Mirror, sql: Sql):
    sql("update residency_event set next_use_step = 40 where run_id = 1 and event_index = 16")
    sql("update run set tokens = tokens + 64 where run_id = 1")
    assert mirror.sync()
    where = "where run_id = 1 and event_index = 16"
    assert rows(mirror, f"select next_use_step from v_residency_event {where}") == [{"next_use_step": 40}]


def test_a_validation_of_a_finished_run_is_seen(mirror: Mirror, sql: Sql):
    sql("insert into validation values (2, 'trust', 'global', 0.5, 0.4, 0.6, 120, 10, 1)")
    assert mirror.sync()
    assert len(rows(mirror, "from v_validation where run_id = 2")) == 1
    sql("delete from validation")
    assert mirror.sync()
    assert rows(mirror, "from v_validation") == []
    assert not mirror.sync()


def test_the_version_grows_with_what_changed_only(mirror: Mirror, sql: Sql):
    before = mirror.version
    mirror.sync()
    assert mirror.version == before
    sql("update run set tokens = 1 where run_id = 2")
    mirror.sync()
    assert mirror.version == before + 1


def test_a_view_is_copied_when_it_is_wanted(record: Path, sql: Sql):
    mirror = Mirror(record, ["v_gap"])
    mirror.sync()
    assert len(rows(mirror, "from v_gap")) == 2
    assert rows(mirror, "from v_expert_window") == []
    mirror.want({"v_expert_window": None})
    assert mirror.sync()
    assert rows(mirror, "select count(*) as n from v_expert_window") == sql("select count(*) as n from v_expert_window")
    assert len(rows(mirror, "from v_run")) == 2
    assert not mirror.sync()


def test_progress_is_told(record: Path):
    told: dict[str, int] = {}
    Mirror(record).sync(progress=lambda view, count: told.update({view: told.get(view, 0) + count}))
    assert told["v_expert_window"] == 12 * 5 * 32 + 6 * 16 + 3 * 8


def test_a_record_of_a_later_version_is_refused(record: Path, sql: Sql):
    sql("update alembic_version set version_num = '9999'")
    with pytest.raises(RecordNewerError, match="9999"):
        Mirror(record).sync()


def test_the_contract_knows_the_newest_revision():
    revisions = Path(__file__).parents[2] / "migrations" / "versions"
    assert max(path.stem.split("_")[0] for path in revisions.glob("*.py")) == REVISION


def test_another_run_under_the_same_id_keeps_nothing_of_the_old_one(mirror: Mirror, sql: Sql):
    sql("delete from score_window where run_id = 1")
    sql("update run set name = 'other' where run_id = 1")
    mirror.sync()
    assert rows(mirror, "from v_window where run_id = 1") == []


def test_a_failed_sync_leaves_the_mirror_as_it_was(mirror: Mirror, sql: Sql):
    before = rows(mirror, "from v_run order by run_id")
    sql("update run set tokens = 1")
    sql("drop view v_window")
    with pytest.raises(RecordUnreadableError, match="v_window"):
        mirror.sync()
    assert rows(mirror, "from v_run order by run_id") == before


def test_the_mirror_reads_no_files(mirror: Mirror, record: Path):
    with pytest.raises(Exception, match="disabled"):
        mirror.table(f"select * from read_text('{record}')")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(RecordMissingError) as caught:
        Mirror(tmp_path / "none.db").sync()
    assert caught.value.path == tmp_path / "none.db"


@pytest.mark.parametrize("content", [b"no database, but long enough to be read as one" * 40, b""])
def test_a_file_that_is_no_record_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "some.db").write_bytes(content)
    with pytest.raises(RecordUnreadableError):
        Mirror(tmp_path / "some.db").sync()


def test_a_folder_is_refused(tmp_path: Path):
    with pytest.raises(RecordUnreadableError):
        Mirror(tmp_path).sync()
