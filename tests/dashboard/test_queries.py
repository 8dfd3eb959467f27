import re
from datetime import datetime, timedelta
from math import log2
from pathlib import Path

import pytest

import dashboard
from dashboard import queries
from dashboard.connection import Mirror
from tests.dashboard.conftest import Sql
from tests.dashboard.record import WHAT_IF


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
    asked = Path(queries.__file__).parent.glob("*.py")
    named = re.findall(r'(?:ask|rows)\(\s*mirror,\s*"(\w+)"', "".join(file.read_text() for file in asked))
    assert sorted({file.stem for file in files}) == sorted(set(named))
    for file in files:
        assert file.read_text(encoding="utf-8").splitlines()[0].endswith("?")


def test_the_course_of_a_run_has_a_row_per_window(mirror: Mirror):
    windows = queries.windows(mirror, 1).to_pylist()
    assert [row["token"] for row in windows] == [64 * (index + 1) for index in range(12)]
    assert {(row["nll"], row["hit_rate"]) for row in windows} == {(2.0, 0.75)}
    assert [row["evictions_per_1000"] for row in windows[:2]] == [0.0, 1000 / 64]
    assert queries.sparklines(mirror)[1] == [0.75] * 12
    assert queries.pace(mirror, 1)["tokens_per_s"][0].as_py() == 64e9


def test_an_expert_is_followed_from_window_to_window(mirror: Mirror, sql: Sql):
    history = queries.expert_history(mirror, 1, "model", 2, 12).to_pylist()
    where = "run_id = 1 and layer = 2 and expert = 12"
    there = sql(f"select trust, uses from v_expert_window where {where} order by window_index")
    assert [(row["trust"], row["uses"]) for row in history] == [(row["trust"], row["uses"]) for row in there]
    assert [row["residency"] for row in history] == [None] + [0.75] * 11
    assert [round(row["peak"], 3) for row in history[:3]] == [0.5, 0.6, 0.0]


def test_the_map_of_a_window_is_of_that_window(mirror: Mirror, sql: Sql):
    cells = queries.expert_map_at(mirror, 1, 4).to_pylist()
    there = sql("select * from v_expert_window where run_id = 1 and window_index = 4 order by layer, expert")
    assert [cell["trust"] for cell in cells] == [row["trust"] for row in there]
    used = [cell for cell in cells if not cell["dead"]]
    assert {cell["residency"] for cell in used} == {0.75}
    over_all = queries.residencies(mirror, 1).to_pylist()
    assert [(row["layer"], row["expert"]) for row in over_all] == [(c["layer"], c["expert"]) for c in cells]
    assert [row["residency"] for row in over_all] == [None if cell["dead"] else 0.75 for cell in cells]


def test_layers_tell_evenness_and_dead_experts(mirror: Mirror, sql: Sql):
    layers = queries.layers(mirror, 1, "*").to_pylist()
    assert [(row["layer"], row["experts"], row["dead"]) for row in layers] == [
        *((0, 32, 0), (1, 32, 0), (2, 32, 0), (3, 32, 1), (4, 32, 0)),
    ]
    loads = [
        row["load"] for row in sql("select load from v_expert_trust where run_id = 1 and layer = 0 and context = '*'")
    ]
    assert layers[0]["entropy_share"] == pytest.approx(-sum(load * log2(load) for load in loads) / 5)


def test_neighbours_come_by_lift_from_both_sides_of_a_pair(mirror: Mirror):
    found = [
        (row["where_"], row["layer"], row["expert"], row["lift"])
        for row in queries.neighbours(mirror, 1, "model", 2, 12)
    ]
    assert found == [
        ("next layer", 3, 7, 6.25),
        ("same layer", 2, 3, 3.5),
        ("layer before", 1, 4, 2.0),
        ("same layer", 2, 20, 0.5),
    ]


def test_stays_in_memory_are_put_on_the_axis_of_tokens(mirror: Mirror):
    first, second = queries.expert_residency(mirror, 1, "model", 2, 12).to_pylist()
    assert (first["since"], first["until"], second["since"], second["until"]) == (2, 5, 9, 30)
    assert (first["since_token"], first["until_token"]) == (128, 6 * 64)  # a pass is 64 tokens; it leaves after pass 5


def test_traffic_regret_and_reasons_are_counted(mirror: Mirror):
    traffic = queries.residency_by_step(mirror, 1).to_pylist()
    assert sum(row["events"] for row in traffic if row["kind"] == "load") == 12
    assert sum(row["events"] for row in traffic if row["kind"] == "evict") == 5
    regret = {row["back_after"]: row["evictions"] for row in queries.regret(mirror, 1).to_pylist()}
    assert regret == {"1 pass": 1, "2 to 4": 1, "17 to 64": 1, "not again": 2}
    reasons = {(row["kind"], row["reason"]): row for row in queries.reasons(mirror, 1).to_pylist()}
    assert {key: row["events"] for key, row in reasons.items()} == {
        ("load", "demand"): 11,
        ("load", "prefetch"): 1,
        ("evict", "capacity"): 5,
    }
    assert reasons["load", "demand"]["waited_s"] == pytest.approx(0.011)
    assert reasons["load", "demand"]["mib"] == pytest.approx(11 * 4096 / 2**20)
    assert reasons["evict", "capacity"]["read_s"] is None
    quarters = queries.trust_of_evicted(mirror, 1)
    assert [row["quarter"] for row in quarters] == [4, 3, 2, 1]
    assert sum(row["evictions"] for row in quarters) == 5


def test_moments_come_by_salience_with_what_drove_them(mirror: Mirror):
    top, second = queries.moments(mirror, 1, "model", context="*", driven_by="", most=2)
    assert (top["text_id"], top["position"], top["salience"]) == ("t1", 32, 0.9)
    assert (top["nll_before"], top["nll"], top["nll_after"]) == (1.0, 3.0, 4.0)
    assert top["driven_by"] == "arousal"
    assert (second["text_id"], second["position"], second["driven_by"]) == ("t2", 32, "reward")
    code = queries.moments(mirror, 1, "model", context="code", driven_by="", most=20)
    assert {row["text_id"] for row in code} == {"t0"}
    driven = queries.moments(mirror, 1, "model", context="*", driven_by="conflict", most=20)
    assert driven
    assert {row["driven_by"] for row in driven} == {"conflict"}


def test_what_follows_salient_windows_is_averaged(mirror: Mirror):
    quarters = queries.after(mirror, 1, "model")
    assert [(row["quarter"], row["windows"]) for row in quarters] == [(4, 3), (3, 3), (2, 3), (1, 3)]
    assert quarters[0]["nll_after"] == pytest.approx((4.0 + 3.5 + 2.0) / 3)  # after .9, .7 and .6


def test_the_stream_keeps_the_peaks(mirror: Mirror):
    stream = queries.salience_stream(mirror, 1, "model").to_pylist()
    assert len(stream) == 12
    assert max(row["greatest"] for row in stream) == 0.9


def test_gaps_trace_and_validation_are_as_recorded(mirror: Mirror):
    assert [(row["reason"], row["count"]) for row in queries.gaps(mirror, 2)] == [
        ("queue full", 900),
        ("not finite", 100),
    ]
    assert queries.gaps(mirror, 1) == queries.trace(mirror, 2) == []
    (trace,) = queries.trace(mirror, 1)
    assert trace == {"files": 2, "rows": 1280, "bytes": 18000.0, "first_step": 0, "last_step": 11}
    scopes = list(dict.fromkeys(queries.validation(mirror, 1)["scope"].to_pylist()))
    assert scopes == ["global", "within layer", "code"]
    assert queries.validation(mirror, 1).to_pylist()[0]["statistic"] == "impact_mean"


def test_what_intervals_hold_is_no_correlation(mirror: Mirror, sql: Sql):
    assert queries.coverage(mirror, 1) == []
    sql("insert into validation values (1, '90% intervals that hold', 'code', 0.85, 0.85, 0.85, 160, 88, 1)")
    sql("insert into validation values (1, 'trust - load', 'code', 0.09, 0.01, 0.2, 160, 88, 1)")
    mirror.sync()
    assert queries.coverage(mirror, 1) == [{"context": "code", "share": 0.85, "experts": 160, "texts": 88}]
    of_code = [row for row in queries.validation(mirror, 1).to_pylist() if row["scope"] == "code"]
    assert [(row["statistic"], row["is_difference"]) for row in of_code] == [
        *(("trust", False), ("load", False), ("trust - load", True))
    ]


def test_curves_hold_what_each_policy_would_have_missed(mirror: Mirror):
    assert queries.what_if_phases(mirror, 1) == ["all", "prefill"]
    assert queries.what_if_phases(mirror, 2) == []
    rows = queries.what_if(mirror, 1, "all").to_pylist()
    assert {(row["policy"], row["budget_experts"]): row["miss_ratio"] for row in rows} == {
        (policy, budget): misses / 2000 for policy, curve in WHAT_IF.items() for budget, misses in curve.items()
    }
    assert [(row["policy"], row["budget_experts"]) for row in rows if row["is_own"]] == [("lru", 64)]
    policies = queries.what_if_policies(mirror, 1, "all")
    assert [(row["policy"], row["is_own"]) for row in policies] == [("use-rate", False), ("lru", True)]
    at_own = queries.what_if_at_own(mirror, 1, "all")
    assert [(row["policy"], row["miss_ratio"]) for row in at_own] == [
        ("belady", 0.15),
        ("use-rate", 0.24),
        ("lru", 0.25),
    ]
    assert {row["budget_experts"] for row in at_own} == {64}


def test_the_difference_of_two_runs_is_over_their_common_experts(mirror: Mirror, sql: Sql):
    assert queries.difference(mirror, 1, 2) == []
    sql("update expert_trust set component = 'model', trust = 0.0 where run_id = 2 and component = 'talker'")
    sql("update run set tokens = tokens + 1 where run_id = 2")
    mirror.sync()
    rows = queries.difference(mirror, 1, 2)
    assert len(rows) == 20
    assert rows[0]["pairs"] == 24
    assert [row["change"] for row in rows] == sorted((row["this"] for row in rows), reverse=True)
    changes = queries.expert_difference(mirror, 1, 2, "*").to_pylist()
    assert len(changes) == 160
    assert sum(row["change"] is not None for row in changes) == 24
