"""How fast the dashboard answers on a long run, beside SQLite: `python -m tests.benchmarks.dashboard [--windows 2000]`.

Writes a record of 48 layers x 128 experts and so many score windows, copies it into the mirror, then asks what a page
asks at one interaction, and three of the named questions also of SQLite itself. Each runs in a process of its own: one
file must not be opened through two SQLite libraries in one process.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAYERS, EXPERTS, TOP_K = 48, 128, 8
WINDOW_TOKENS = 4096
BOTH = ("load", "trust")  # named questions over score windows, put to both engines
TIMES = 20  # each page's question, with other parameters each time

RANDOM = "(abs(random()) / 9223372036854775808.0)"


def write(path: str, windows: int) -> None:
    """Write one finished run."""
    from observer.db import open_db

    open_db(Path(path)).dispose()
    connection = sqlite3.connect(path)
    connection.execute("pragma synchronous = off")
    tokens = windows * WINDOW_TOKENS
    run = dict(run_id=1, name="long", status="done", error="", started_at="2026-01-01T00:00:00+00:00", capture="all")
    run |= dict.fromkeys(("heartbeat_at", "finished_at"), "2026-01-08T00:00:00+00:00") | dict(tokens=tokens)
    run |= dict.fromkeys(("checkpoint", "checkpoint_digest", "model_family", "policy", "config_hash"), "x")
    run |= dict.fromkeys(("config", "versions", "drops"), "{}") | dict(parity="equal", parity_lines="[]")
    zero = ("budget_experts", "budget_bytes", "sequences", "sequences_planned", "predicted", "hits", "misses", "loads")
    run |= dict.fromkeys((*zero, "evictions", "bytes_read", "events_seen", "events_dropped"), 1) | dict(nll_sum=1.0)
    insert(connection, "run", run)
    connection.executemany(
        "insert into expert (run_id, component, layer, expert, bytes) values (1, 'thinker', ?, ?, 9437184)",
        [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)],
    )
    for index in range(windows):
        row: dict[str, Any] = dict(run_id=1, window_index=index, last_window=index, phase="prefill", nll_sum=9.0)
        row |= dict(first_step=index, last_step=index, tokens=WINDOW_TOKENS, predicted=9, wall_ns=1, passes=1)
        row |= dict(first_token=index * WINDOW_TOKENS, last_token=(index + 1) * WINDOW_TOKENS - 1)
        insert(connection, "score_window", row | dict(hits=3, misses=1, loads=1, evictions=1, bytes_read=1))
    scores = {
        **dict.fromkeys(("trust", "convergence", "stability", "efficiency", "weight_mean", "reap"), RANDOM),
        **dict(trust_low="0.2", trust_high="0.8", uses=f"cast(256 * {RANDOM} as integer)", blocks="w.window_index"),
        **dict(load=f"{RANDOM} / 64", ean="9.0", impact_mean=f"{RANDOM} / 100", block_mean="0.01", block_m2="0.1"),
        **dict(windows="w.window_index", window_cv="0.5"),
    }
    detail = dict.fromkeys(("surprise", "novelty", "arousal", "reward", "conflict"), RANDOM)
    detail |= dict(hits="3", misses="1", evictions="1")
    keys = "run_id, component, layer, expert"
    names = ", ".join((*scores, *detail))
    connection.execute(
        f"insert into expert_window ({keys}, window_index, {names}) select e.run_id, e.component, e.layer, e.expert,"
        f" w.window_index, {', '.join((*scores.values(), *detail.values()))}"
        " from score_window w cross join expert e order by w.window_index, e.layer, e.expert"
    )
    trust = {name: value.replace("w.window_index", "9") for name, value in scores.items()}
    connection.execute(
        f"insert into expert_trust ({keys}, context, definition_version, {', '.join(trust)})"
        f" select {keys}, '*', 1, {', '.join(trust.values())} from expert"
    )
    connection.commit()
    connection.close()


def insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    """Insert one row by name."""
    marks = ", ".join("?" * len(row))
    connection.execute(f"insert into {table} ({', '.join(row)}) values ({marks})", tuple(row.values()))


def question(name: str) -> str:
    """Return the SQL of a named question."""
    (path,) = Path(__file__).parents[2].glob(f"migrations/questions/*_{name}.sql")
    return path.read_text(encoding="utf-8")


def measure_mirror(path: str, windows: int) -> dict[str, float]:
    """Time the first copy, the next one, and the questions; in seconds."""
    from dashboard import queries
    from dashboard.connection import Mirror
    from dashboard.contract import EXPERT_WINDOWS, VIEWS
    from dashboard.statement import permit

    found: dict[str, float] = {}
    mirror = Mirror(Path(path), VIEWS.keys() - {EXPERT_WINDOWS})
    found["first load"] = timed(mirror.sync)
    found["sync without change"] = timed(mirror.sync)
    found["first look at an expert"] = timed(lambda: queries.expert_history(mirror, 1, "thinker", 0, 0))
    found["first load: residency over the run"] = timed(lambda: queries.residencies(mirror, 1))
    chance = random.Random(1)

    def key() -> tuple[int, str, int, int]:
        return 1, "thinker", chance.randrange(LAYERS), chance.randrange(EXPERTS)

    asked: dict[str, Callable[[], object]] = {
        "runs": lambda: queries.runs(mirror),
        "hit rate sparklines": lambda: queries.sparklines(mirror),
        "map as it stands": lambda: queries.expert_map(mirror, 1, "*"),
        "residency over the run": lambda: queries.residencies(mirror, 1),
        "map at a window": lambda: queries.expert_map_at(mirror, 1, chance.randrange(windows)),
        "margins": lambda: queries.layers(mirror, 1, "*"),
        "an expert over all windows": lambda: queries.expert_history(mirror, *key()),
        "the run over all windows": lambda: queries.windows(mirror, 1),
    }
    for name, ask in asked.items():
        ask()
        found[f"page: {name}"] = sorted(timed(ask) for _ in range(TIMES))[int(0.95 * TIMES) - 1]
    found["peak memory of the pages, GiB"] = peak()
    for name in BOTH:
        sql = question(name)
        with mirror.cursor() as cursor:
            statement = permit(cursor, sql)
        mirror.want({view: statement.columns for view in statement.views})
        found[f"SQL: copy for {name}"] = timed(mirror.sync)
        found[f"named: {name}"] = min(timed(lambda sql=sql: mirror.table(sql, {"run_id": 1})) for _ in range(3))
    found["peak memory with SQL's copy, GiB"] = peak()
    return found


def measure_sqlite(path: str) -> dict[str, float]:
    """Time the same named questions put to SQLite, once each with a warm file."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    connection.execute("select sum(uses) from expert_window").fetchall()  # the file is in the page cache from here on
    return {
        f"named: {name}": timed(lambda name=name: connection.execute(question(name), {"run_id": 1}).fetchall())
        for name in BOTH
    }


def peak() -> float:
    """Return the most memory that this process ever had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(work: Callable[[], object]) -> float:
    """Return how long it took, in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure and print, or do one part in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=200, help="score windows; a long run has 2,000")
    parser.add_argument("--part", choices=("write", "mirror", "sqlite"), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "write":
        write(arguments.file, arguments.windows)
    elif arguments.part == "mirror":
        json.dump(measure_mirror(arguments.file, arguments.windows), sys.stdout)
    elif arguments.part == "sqlite":
        json.dump(measure_sqlite(arguments.file), sys.stdout)
    else:
        report(arguments.windows)


def report(windows: int) -> None:
    """Run the parts and print what they found."""
    with tempfile.TemporaryDirectory() as folder:

        def part(name: str) -> str:
            command = [sys.executable, "-m", "tests.benchmarks.dashboard", "--windows", str(windows)]
            command += ["--part", name, "--file", f"{folder}/record.db"]
            return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

        part("write")
        size = Path(folder, "record.db").stat().st_size
        mirror, sqlite = json.loads(part("mirror")), json.loads(part("sqlite"))
    rows = LAYERS * EXPERTS * windows
    print(f"{LAYERS * EXPERTS:,} experts x {windows:,} windows = {rows:,} rows, {size / 2**20:,.0f} MiB")
    for name, value in mirror.items():
        if name.startswith("named: "):
            ratio = sqlite[name] / value
            print(f"{name:42} {1000 * value:9.1f} ms   SQLite {1000 * sqlite[name]:9.1f} ms   ratio {ratio:6.1f}")
        elif name.startswith("peak"):
            print(f"{name:42} {value:9.2f}")
        else:
            print(f"{name:42} {1000 * value:9.1f} ms{'   (95th percentile)' if name.startswith('page') else ''}")


if __name__ == "__main__":
    main()
