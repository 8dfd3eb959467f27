"""`observer replay` and `observer plan`, from a run's own trace and from the public CSV form."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from observer.cli import main
from observer.errors import ObserverError
from observer.replay.cost import reloads
from observer.replay.csv_form import read_csv
from observer.replay.plan import plan, worth_a_pin
from observer.replay.regret import regret
from observer.replay.simulate import simulate
from observer.replay.sweep import Setting, run_one, sweep
from segmoe.events import ExpertKey
from segmoe.policies import POLICIES
from tests.observer.traces import drifting, loops, of_accesses, zipf

CSV = """\
# route_trace v1
# model=x arch=y n_layer=2 n_expert=4 n_expert_used=2
# layer=0 expert_bytes=10 dense_bytes=1
# layer=1 expert_bytes=20 dense_bytes=1
turn,phase,step,layer,slot,expert,weight,residency,expert_bytes
0,0,0,0,0,3,0.5,0,10
0,0,0,0,1,1,0.5,0,10
0,0,0,1,0,0,0.5,0,20
0,1,1,0,0,3,0.5,1,10
0,1,1,1,0,2,0.5,0,20
"""


def observer(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of batches with padding, then generation, with their traces; the second ranks by trust of the first."""
    db = tmp_path_factory.mktemp("replay") / "record.db"
    settings = ("--no-verify", "--limit", 12, "--max-tokens", 48, "--batch", 4, "--experts", 33)
    generating = ("--generate", 6, "--generate-texts", 3)
    for name, policy in (("own", ()), ("trusting", ("--policy", "trust", "--trust-from", "own"))):
        result = observer("run", "--db", db, "--run", name, *settings, *generating, *policy, "--trace")
        assert result.exit_code == 0, result.output
    return db


@pytest.mark.parametrize("run", ["own", "trusting"])
def test_the_replay_of_a_run_from_its_record_counts_what_the_run_counted(record: Path, run: str) -> None:
    with closing(sqlite3.connect(record)) as connection:
        hits, misses, evictions, read, policy, experts = connection.execute(
            "SELECT hits, misses, evictions, bytes_read, policy, budget_experts FROM v_run WHERE name = ?", (run,)
        ).fetchone()
    chosen = ("--run", run, "--policy", policy, "--experts", experts)
    result = observer("replay", "--db", record, *chosen, "--json", "--regret")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout)
    cost, *by_phase = answer["costs"]
    assert [one["phase"] for one in by_phase] == ["prefill", "decode"]
    assert (cost["hits"], cost["misses"], cost["evictions"], cost["bytes_read"]) == (hits, misses, evictions, read)
    assert answer["trace"]["share_of_run"] == 1
    assert [found["by"].split()[0] for found in answer["regret"]] == ["score", "trust,"]
    assert sum(group["evictions"] for group in answer["regret"][1]["groups"]) == evictions


def stored(db: Path, run: str, what: str, where: str = "1") -> list[tuple]:
    with closing(sqlite3.connect(db)) as connection:
        return connection.execute(
            f"SELECT {what} FROM v_what_if JOIN v_run USING (run_id) WHERE name = ? AND {where} ORDER BY 1, 2, 3, 4",
            (run,),
        ).fetchall()


@pytest.fixture
def own_record(record: Path, tmp_path: Path) -> Path:
    """A copy for this test alone, in which nothing was replayed."""
    db = tmp_path / record.name
    shutil.copytree(record.parent, tmp_path, dirs_exist_ok=True)
    with closing(sqlite3.connect(db)) as connection, connection:
        connection.execute("DELETE FROM what_if")
    return db


@pytest.mark.parametrize("run", ["own", "trusting"])
def test_a_replay_is_kept_in_the_record_with_the_runs_own_setting_marked(own_record: Path, run: str) -> None:
    """Marked is exactly what the run counted, phase by phase."""
    printed = json.loads(observer("replay", "--db", own_record, "--run", run, "--json").stdout)
    kept = stored(own_record, run, "phase, v_what_if.policy, v_what_if.budget_experts, v_what_if.misses, is_own")
    names = ("phase", "policy", "experts", "misses", "is_own")
    assert kept == sorted(tuple(cost[name] for name in names) for cost in printed["costs"])
    assert {policy for _, policy, *_ in kept} > {"belady", "lru", "trust-per-layer"}
    with closing(sqlite3.connect(own_record)) as connection:
        counted = connection.execute(
            "SELECT phase, SUM(w.hits + w.misses), SUM(w.misses), SUM(w.evictions), SUM(w.bytes_read) "
            "FROM v_window w JOIN v_run USING (run_id) WHERE name = ? GROUP BY phase ORDER BY phase",
            (run,),
        ).fetchall()
    figures = "phase, accesses, v_what_if.misses, v_what_if.evictions, v_what_if.bytes_read"
    assert stored(own_record, run, figures, "is_own AND phase <> 'all'") == counted
    every = (
        "miss_ratio_low <= miss_ratio AND miss_ratio <= miss_ratio_high AND ABS(read_ms - 1e3 * v_what_if.bytes_read"
    )
    assert stored(own_record, run, "1, 1, 1, COUNT(*)", f"{every} / bytes_per_s) < 1e-6") == [(1, 1, 1, len(kept))]


def test_what_is_kept_grows_with_each_question_and_not_of_files_or_parts(own_record: Path, tmp_path: Path) -> None:
    def rows() -> int:
        return len(stored(own_record, "own", "1, 2, 3, 4"))

    asked = ("--db", own_record, "--run", "own", "--policy", "lru")
    for extra, expected in (
        (("--no-store",), 0),
        (("--phase", "decode"), 0),
        (("--experts", 20), 3),
        (("--experts", 20), 3),  # again
        (("--experts", 22), 6),
    ):
        assert observer("replay", *asked, *extra).exit_code == 0
        assert rows() == expected, extra
    refused = observer("plan", *asked, "--hit-rate", 0.9999)
    assert (refused.exit_code, "no budget reaches" in refused.stderr) == (1, True)
    assert rows() == 6 + 3 * 25 - 3  # 24 points and the run's own 33 experts; 22 was there before
    assert observer("db", "prune", "--db", own_record, "--run", "own", "--drop", "what-if").exit_code == 0
    assert rows() == 0


def test_a_run_with_a_budget_in_bytes_is_replayed_at_it(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    settings = ("--no-verify", "--limit", 6, "--max-tokens", 32, "--budget", "700KiB", "--trace")
    assert observer("run", "--db", db, "--run", "own", *settings).exit_code == 0
    assert observer("replay", "--db", db).exit_code == 0
    with closing(sqlite3.connect(db)) as connection:
        counted = connection.execute("SELECT budget_experts, budget_bytes, misses, evictions FROM v_run").fetchall()
    figures = ("budget_experts", "budget_bytes", "misses", "evictions")
    kept = stored(db, "own", ", ".join(f"v_what_if.{name}" for name in figures), "is_own AND phase = 'all'")
    assert kept == counted
    assert kept[0][1] == 700 * 1024


def test_both_commands_print_tables_and_write_a_chart(record: Path, tmp_path: Path) -> None:
    shown = observer("replay", "--db", record, "--run", "own", "--regret", "--phase", "decode")
    assert shown.exit_code == 0, shown.output
    for word in ("use-rate-per-layer", "trust", "Belady (ceiling)", "Belady kept it", "highest less lowest"):
        assert word in shown.stdout
    chart = tmp_path / "curves.json"
    policies = ("--policy", "lru", "--policy", "belady")
    planned = observer("plan", "--db", record, "--hit-rate", 0.5, "--chart", chart, *policies)
    assert planned.exit_code == 0, planned.output
    assert "For a hit rate of 0.500:" in planned.stdout
    drawn = json.loads(chart.read_text())
    (points,) = drawn["datasets"].values()
    assert {point["policy"] for point in points} == {"lru", "belady"}
    assert all(0 <= point["miss_ratio"] <= 1 for point in points)


def test_the_public_csv_form_is_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(CSV)
    trace = read_csv(file)
    assert [tuple(trace.keys[expert])[1:] for expert in trace.expert] == [(0, 1), (0, 3), (1, 0), (0, 3), (1, 2)]
    assert trace.pass_index.tolist() == [0, 0, 0, 1, 1]
    assert trace.is_decode.tolist() == [False, True]
    assert trace.nbytes.tolist() == [10] * 4 + [20] * 4
    result = observer("replay", "--trace", file, "--policy", "lru", "--experts", 8, "--json", "--rate", 0.001)
    cost = json.loads(result.stdout)["costs"][0]
    assert (cost["hits"], cost["misses"], cost["bytes_read"], cost["seconds"]) == (1, 4, 60, 6e-5)


def test_an_exported_trace_replays_like_the_runs_own(record: Path, tmp_path: Path) -> None:
    """Of the generated tokens, where a pass is a token in both forms, and padding plays no part."""
    file = tmp_path / "exported.csv"
    assert observer("trace", "export", "--db", record, "--run", "own", "--out", file).exit_code == 0
    picked = ("--phase", "decode", "--policy", "lru", "--experts", 50, "--rate", 1, "--json")
    own = json.loads(observer("replay", "--db", record, "--run", "own", *picked).stdout)["costs"]
    other = json.loads(observer("replay", "--trace", file, *picked).stdout)["costs"]
    assert own == other


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is no route trace"),
        ("turn,phase\n0,0\n", "it needs rows and the columns"),
        ("turn,phase,step,layer,slot,expert\n0,0,0,x,0,1\n", "cannot be read as a route trace"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(content)
    result = observer("replay", "--trace", file)
    assert result.exit_code == 1
    assert says in result.stderr


def test_bad_requests_get_one_sentence(tmp_path: Path, record: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no")
    for arguments, code, says in (
        (("--trace", tmp_path / "none.csv"), 1, "does not exist"),
        (("--trace", tmp_path / "x.parquet"), 1, "is no route trace"),
        (("--trace", record.parent), 1, "holds no Parquet files"),
        (("--db", record, "--run", "other"), 1, "other"),
        (("--db", record, "--policy", "fate"), 1, "choose one of"),
        (("--trace", "a", "--run", "b"), 2, "not both"),
    ):
        result = observer("replay", *arguments)
        assert (result.exit_code, says in result.stderr) == (code, True), (arguments, result.stderr)


def test_the_smallest_budget_is_one_that_one_less_would_not_do() -> None:
    trace = of_accesses(zipf(6000, 120))
    for found in plan(trace, 0.6, ["lru", "use-rate", "belady"]):
        assert 1 - run_one(trace, found.policy, found.experts).miss_ratio == found.hit_rate >= 0.6
        assert 1 - run_one(trace, found.policy, found.experts - 1).miss_ratio < 0.6
        assert found.low < found.hit_rate < found.high
        assert found.nbytes == found.experts
    with pytest.raises(ObserverError, match="no budget reaches a hit rate of"):
        plan(trace, 0.999, ["lru"])


def test_the_interval_of_a_plan_covers_another_stretch_of_the_same_kind() -> None:
    """Of 40 traces whose next stretch is measured, the 90% interval holds it in most."""
    covered = 0
    for seed in range(40):
        accesses = zipf(8000, 120, seed=seed)
        (found,) = plan(of_accesses(accesses), 0.6, ["lru"])
        outcome = simulate(of_accesses(zipf(8000, 120, seed=seed)[::-1].copy()), POLICIES["lru"], experts=found.experts)
        covered += found.low <= 1 - outcome.miss_ratio <= found.high
    assert covered >= 32


def test_who_is_always_used_is_worth_a_pin() -> None:
    trace = of_accesses(np.array([0] * 95 + [1] * 5), 3)
    assert worth_a_pin(trace) == [(ExpertKey("model", 0, 0), 0.95)]
    assert worth_a_pin(of_accesses(loops(100, 10))) == []


def test_each_eviction_finds_its_reload() -> None:
    trace = of_accesses(np.array([0, 1, 2, 0, 1, 2]))
    outcome = simulate(trace, POLICIES["lru"], experts=2, plain=True)
    assert outcome.evicted.tolist() == [0, 1, 2, 0]
    assert reloads(trace, outcome).tolist() == [3, 4, 5, 6]
    cost = sweep(trace, [Setting("lru", 2)], bytes_per_s=2, soon_tokens=1)[0]
    assert (cost.misses, cost.seconds, cost.evictions, cost.reloads_soon) == (6, 3, 4, 3)


def test_regret_knows_a_good_rule_from_a_bad_one_and_noise_from_both() -> None:
    """Evictions of experts that come back soon are regretted; a value drawn at random explains nothing."""
    trace = of_accesses(drifting(30_000, 300))
    outcome = run_one(trace, "random", 60)
    waits = reloads(trace, outcome) - outcome.evicted_at
    soon = regret(trace, outcome, -waits.astype(float), experts=60)
    assert soon.groups[-1].regretted > soon.groups[0].regretted_high
    assert soon.difference_low > 0
    noise = regret(trace, outcome, np.random.default_rng(0).random(len(waits)), experts=60)
    assert noise.difference_low < 0 < noise.difference_high
    assert sum(group.evictions for group in noise.groups) == len(waits)


def test_beladys_own_evictions_are_never_regretted() -> None:
    trace = of_accesses(zipf(5000, 100))
    outcome = run_one(trace, "belady", 30)
    found = regret(trace, outcome, outcome.score, experts=30)
    assert [group.regretted for group in found.groups] == [0, 0, 0]
