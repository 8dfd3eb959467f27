from datetime import datetime, timedelta
from math import log2
from pathlib import Path

import pytest

import dashboard
from dashboard import queries
from dashboard.connection import Mirror
from tests.dashboard.conftest import Sql


def test_runs_come_newest_first_with_their_header(mirror: Mirror):
    omni, small = queries.runs(mirror)
    assert (omni.name, small.name) == ("omni", "small")
    assert (small.tokens, small.nll, small.hit_rate, small.recorded_frac) == (123456, 2.345, 0.75, 1.0)
    assert (omni.events_dropped, omni.recorded_frac) == (1000, 0.9)


def test_shares_of_nothing_are_unknown(mirror: Mirror, sql: Sql):
    sql("update run set tokens = 0, hits = 0, misses = 0, events_seen = 0, events_dropped = 0 where run_id = 1")
    mirror.sync()
    small = queries.runs(mirror)[1]
    assert (small.nll, small.hit_rate, small.recorded_frac) == (None, None, None)


def test_a_run_is_live_while_its_heart_beats(mirror: Mirror):
    omni, small = queries.runs(mirror)
    beat = datetime.fromisoformat(omni.heartbeat_at)
    assert omni.is_live(beat + timedelta(seconds=60))
    assert not omni.is_live(beat + timedelta(seconds=61))
    assert not small.is_live(datetime.fromisoformat(small.heartbeat_at))


def test_all_contexts_come_first(mirror: Mirror):
    assert queries.contexts(mirror, 1) == ["*", "code", "dialogue", "prose"]
    assert queries.contexts(mirror, 99) == []


@pytest.mark.parametrize("context", ["*", "prose"])
def test_the_map_holds_each_expert_once_with_its_own_figures(mirror: Mirror, sql: Sql, context: str):
    cells = queries.expert_map(mirror, 2, context).to_pylist()
    there = sql(f"select * from v_expert_trust where run_id = 2 and context = '{context}'")
    assert len(cells) == len(there) == 6 * 16 + 3 * 8
    by_key = {(row["component"], row["layer"], row["expert"]): row for row in there}
    experts = {"thinker": 16, "talker": 8}
    for cell in cells:
        row = by_key[cell["component"], cell["layer"], cell["expert"]]
        assert {name: cell[name] for name in ("trust", "trust_low", "trust_high", "load", "uses")} == {
            name: row[name] for name in ("trust", "trust_low", "trust_high", "load", "uses")
        }
        assert cell["load_log2"] == pytest.approx(log2(row["load"] * experts[cell["component"]]))


def test_an_unused_expert_is_dead_and_has_no_load(mirror: Mirror):
    dead = [cell for cell in queries.expert_map(mirror, 1, "*").to_pylist() if cell["dead"]]
    assert [(cell["layer"], cell["expert"], cell["load_log2"]) for cell in dead] == [(3, 9, None)]


def test_an_expert_has_a_row_per_context(mirror: Mirror, sql: Sql):
    rows = queries.expert(mirror, 2, "talker", 1, 5)
    assert [row["context"] for row in rows] == ["*", "code", "dialogue", "prose"]
    where = "run_id = 2 and component = 'talker' and layer = 1 and expert = 5 and context = 'code'"
    (there,) = sql(f"select * from v_expert_trust where {where}")
    assert rows[1] == {name: there[name] for name in rows[1]}
    assert queries.expert(mirror, 2, "talker", 1, 99) == []


def test_each_question_starts_with_what_it_asks():
    files = sorted(Path(dashboard.__file__).parent.glob("sql/*.sql"))
    assert [file.stem for file in files] == ["contexts", "expert", "expert_map", "runs"]
    for file in files:
        assert file.read_text(encoding="utf-8").splitlines()[0].endswith("?")
