"""`observer replay` and `observer plan`, from a run's own trace and from the public CSV form."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from observer.replay.csv_form import read_csv
from tests.observer.asking import observer

HEADER = "turn,phase,step,layer,slot,expert\n"
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


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of batches with padding, then generation, with their traces: plain, by trust of the first, with a stop."""
    db = tmp_path_factory.mktemp("replay") / "record.db"
    settings = ("--no-verify", "--limit", 12, "--max-tokens", 48, "--batch", 4, "--experts", 33)
    generating = ("--generate", 6, "--generate-texts", 3)
    by_trust, stop = ("--policy", "trust", "--trust-from", "own"), ("--total-tokens", 150)
    for name, more in (("own", ()), ("trusting", by_trust), ("stopped", stop), ("stopped", ())):
        result = observer("run", "--db", db, "--run", name, *settings, *generating, *more, "--trace")
        assert result.exit_code == 0, result.output
    with closing(sqlite3.connect(db)) as connection:
        assert connection.execute("SELECT attempts FROM v_run ORDER BY run_id").fetchall() == [(1,), (1,), (2,)]
    return db


@pytest.mark.parametrize("run", ["own", "trusting", "stopped"])
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


@pytest.mark.parametrize("run", ["own", "trusting", "stopped"])
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
    judged = json.loads(observer("replay", "--db", db, "--regret", "--json").stdout)["regret"]
    with closing(sqlite3.connect(db)) as connection:
        counted = connection.execute("SELECT budget_experts, budget_bytes, misses, evictions FROM v_run").fetchall()
    figures = ("budget_experts", "budget_bytes", "misses", "evictions")
    kept = stored(db, "own", ", ".join(f"v_what_if.{name}" for name in figures), "is_own AND phase = 'all'")
    assert kept == counted
    assert kept[0][1] == 700 * 1024
    assert [sum(group["evictions"] for group in found["groups"]) for found in judged] == [kept[0][3]] * 2


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
        (f"{HEADER}0,0,0,x,0,1\n", "cannot be read as a route trace"),
        (f"{HEADER}0,0,0,0,0,-1\n", "layers and experts count from 0"),
        (f"{HEADER}0,0,0,-1,0,1\n", "layers and experts count from 0"),
        (f"{HEADER}0,0,0,0,0,300000000000\n", "300,000,000,001 experts are more than 1,000,000"),
        ("\udcff\udcfe", "it is no text"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(content, errors="surrogateescape")
    result = observer("replay", "--trace", file)
    assert result.exit_code == 1
    assert says in result.stderr


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"ids": None}, "is no route trace of a run"),
        ({"ids": pa.array([1, 2])}, "is no route trace of a run"),
        ({"step": pa.array(["a", "b"])}, "is no route trace of a run"),
        ({"ids": pa.array([[1, 2], []], pa.list_(pa.uint8()))}, "a token without picks"),
        ({}, ""),
    ],
)
def test_parquet_that_is_no_trace_is_refused(tmp_path: Path, columns: dict[str, pa.Array | None], says: str) -> None:
    file, two = tmp_path / "trace.parquet", pa.array([0, 1], pa.int32())
    table = {name: two for name in ("step", "layer", "position")}
    table |= {"component": pa.array(["model"] * 2), "phase": pa.array(["decode"] * 2)}
    table |= {"ids": pa.array([[1, 2], [1]], pa.list_(pa.uint8()))} | columns
    pq.write_table(pa.table({name: column for name, column in table.items() if column is not None}), file)
    result = observer("replay", "--trace", file, "--policy", "lru")
    assert (result.exit_code, says in result.stderr) == (1 if says else 0, True), result.output


def test_bad_requests_get_one_sentence(tmp_path: Path, record: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"no")
    (tmp_path / "good.csv").write_text(CSV)
    good = ("--trace", tmp_path / "good.csv")
    for arguments, code, says in (
        (("--trace", tmp_path / "none.csv"), 1, "does not exist"),
        (("--trace", tmp_path / "x.parquet"), 1, "is no route trace"),
        (("--trace", record.parent), 1, "holds no Parquet files"),
        (("--db", record, "--run", "other"), 1, "other"),
        (("--db", record, "--policy", "fate"), 1, "choose one of"),
        (("--trace", "a", "--run", "b"), 2, "not both"),
        ((*good, "--policy", "trust-per-layer"), 1, "a trace alone holds none"),
        ((*good, "--rate", "nan"), 2, "is no finite number"),
        ((*good, "--experts", 10**30), 2, "is not in the range"),
        ((*good, "--soon", 10**30), 2, "is not in the range"),
    ):
        result = observer("replay", *arguments)
        assert (result.exit_code, says in result.stderr) == (code, True), (arguments, result.stderr)


def test_a_plan_refuses_what_it_cannot_reach_or_write(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(CSV)
    for arguments, code, says in (
        (("--hit-rate", "nan"), 2, "is no finite number"),
        (("--hit-rate", 1), 1, "with all experts in memory it is 0.200"),
        (("--hit-rate", 0.1, "--chart", tmp_path / "no" / "chart.json"), 1, "chart.json: cannot be written"),
    ):
        result = observer("plan", "--trace", file, "--policy", "lru", *arguments)
        assert (result.exit_code, says in result.stderr) == (code, True), (arguments, result.stderr)


def test_what_is_not_known_is_null_in_json_and_not_a_word_that_parsers_refuse(tmp_path: Path) -> None:
    """One eviction, and it never comes back."""
    file = tmp_path / "trace.csv"
    file.write_text(HEADER + "0,1,0,0,0,1\n0,1,1,0,0,2\n")
    asked = ("--trace", file, "--policy", "lru", "--experts", 1, "--regret")
    answer = observer("replay", *asked, "--json").stdout
    (judged,) = json.loads(answer, parse_constant=pytest.fail)["regret"]
    assert len(judged["groups"]) == 1
    assert (judged["difference"], judged["groups"][0]["tokens_median"]) == (None, None)
    shown = observer("replay", *asked).stdout
    assert "nan" not in shown and "there is nothing to compare" in shown and "tells no sizes of experts" in shown


def test_a_policy_or_budget_that_is_named_twice_is_replayed_once(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(CSV)
    twice = ("--policy", "lru", "--policy", "lru", "--experts", 1, "--experts", 1)
    costs = json.loads(observer("replay", "--trace", file, *twice, "--json").stdout)["costs"]
    assert [cost["phase"] for cost in costs] == ["all", "prefill", "decode"]


def test_textbook_lru_is_written_at_every_budget(record: Path, tmp_path: Path) -> None:
    file = tmp_path / "curve.csv"
    asked = ("--db", record, "--run", "own", "--policy", "belady", "--hit-rate", 0.1, "--no-store")
    assert observer("plan", *asked, "--lru-curve", file).exit_code == 0
    header, *rows = file.read_text().splitlines()
    assert (header, rows[0], len(rows)) == ("experts,miss_ratio", "0,1", 161)
    ratios = [float(row.split(",")[1]) for row in rows]
    assert ratios == sorted(ratios, reverse=True) and 0 < ratios[-1] < 0.2


def test_a_run_is_not_taken_for_its_own_replay_when_the_trust_that_it_saw_is_gone(own_record: Path) -> None:
    asked = ("--db", own_record, "--run", "trusting", "--policy", "trust", "--experts", 33, "--json")

    def is_own() -> bool:
        return json.loads(observer("replay", *asked).stdout)["costs"][0]["is_own"]

    assert is_own()
    with closing(sqlite3.connect(own_record)) as connection, connection:
        connection.execute("UPDATE expert_trust SET trust = 0.5 WHERE run_id = 1 AND context = '*' AND expert = 3")
    assert not is_own()
    assert observer("runs", "delete", "own", "--db", own_record, "--yes").exit_code == 0
    assert not is_own()
