"""How fast the dashboard answers on a long run, beside SQLite: `python -m tests.benchmarks.dashboard --windows 2000`.

Writes a record of 48 layers x 128 experts and so many score windows, copies it into the mirror, asks the questions of
the pages as they ask them, and the named questions also of SQLite itself. Each part runs in a process of its own: one
file must not be opened through two SQLite libraries in one process.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks import long_run
from tests.benchmarks.long_run import COMPONENT, EXPERTS, LAYERS, OTHER

TIMES = 20  # each question is asked, with other parameters each time where it has some
GOAL_S = 0.3

Figures = dict[str, float]


def named() -> dict[str, str]:
    """Return the SQL of the named questions."""
    files = sorted(Path(__file__).parents[2].glob("migrations/questions/*.sql"))
    return {path.stem.split("_", 1)[1]: path.read_text(encoding="utf-8") for path in files}


def values(sql: str) -> dict[str, int]:
    """Return what a named question wants to know."""
    return {name: value for name, value in (("run_id", 1), ("other_id", OTHER)) if f"${name}" in sql}


def measure_pages(path: str, windows: int) -> Figures:
    """Time the first copy, the next one, and the pages' questions; in seconds."""
    from dashboard import queries
    from dashboard.connection import Mirror
    from dashboard.contract import EXPERT_WINDOWS, VIEWS

    found: Figures = {}
    mirror = Mirror(Path(path), VIEWS.keys() - {EXPERT_WINDOWS})
    found["first load"] = timed(mirror.sync)
    found["first load: an expert over all windows"] = timed(lambda: queries.expert_history(mirror, 1, COMPONENT, 0, 0))
    found["looking again, no change"] = p95(mirror.sync)
    chance = random.Random(1)

    def key() -> tuple[int, str, int, int]:
        return 1, COMPONENT, chance.randrange(LAYERS), chance.randrange(EXPERTS)

    everywhere = dict(context="*", driven_by="", most=20)
    asked: dict[str, Callable[[], object]] = {
        "runs": lambda: queries.runs(mirror),
        "hit rate sparklines": lambda: queries.sparklines(mirror),
        "the run over all windows": lambda: queries.windows(mirror, 1),
        "difference to another run": lambda: queries.difference(mirror, 1, OTHER),
        "contexts": lambda: queries.contexts(mirror, 1),
        "map as it stands": lambda: queries.expert_map(mirror, 1, "*"),
        "map by residency over the run": lambda: queries.residencies(mirror, 1),
        "map by difference": lambda: queries.expert_difference(mirror, 1, OTHER, "*"),
        "map at a window": lambda: queries.expert_map_at(mirror, 1, chance.randrange(windows)),
        "margins": lambda: queries.layers(mirror, 1, "*"),
        "an expert": lambda: queries.expert(mirror, *key()),
        "an expert over all windows": lambda: queries.expert_history(mirror, *key()),
        "an expert's stays in memory": lambda: queries.expert_residency(mirror, *key()),
        "an expert's neighbours": lambda: queries.neighbours(mirror, *key()),
        "salience over the run": lambda: queries.salience_stream(mirror, 1, COMPONENT),
        "salient moments": lambda: queries.moments(mirror, 1, COMPONENT, **everywhere),
        "before and after salient moments": lambda: queries.after(mirror, 1, COMPONENT),
        "loads and evictions": lambda: queries.residency_by_step(mirror, 1),
        "reasons": lambda: queries.reasons(mirror, 1),
        "regret": lambda: queries.regret(mirror, 1),
        "trust of the evicted": lambda: queries.trust_of_evicted(mirror, 1),
        "pace": lambda: queries.pace(mirror, 1),
    }
    for name, ask in asked.items():
        found[f"page: {name}"] = p95(ask)
    found["peak memory of the pages, GiB"] = peak()
    return found


def measure_named(path: str) -> Figures:
    """Time what a named question has to copy when it is the first to be asked, and its answers from then on."""
    from dashboard.connection import Mirror
    from dashboard.contract import EXPERT_WINDOWS
    from dashboard.statement import permit

    found: Figures = {}
    mirror = Mirror(Path(path), ())
    for name, sql in named().items():
        with mirror.cursor() as cursor:
            statement = permit(cursor, sql)
        mirror.want({view: statement.columns if view == EXPERT_WINDOWS else None for view in statement.views})
        found[f"copy: {name}"] = timed(mirror.sync)
        found[f"named: {name}"] = p95(lambda sql=sql: mirror.table(sql, values(sql)))  # type: ignore[misc]
    found["peak memory of the SQL page's process, GiB"] = peak()
    return found


def measure_sqlite(path: str) -> Figures:
    """Time the same named questions put to SQLite, once each with a warm file."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    connection.execute("select sum(uses) from expert_window").fetchall()  # the file is in the page cache from here on
    return {
        f"named: {name}": timed(lambda sql=sql: connection.execute(sql, values(sql)).fetchall())  # type: ignore[misc]
        for name, sql in named().items()
    }


def peak() -> float:
    """Return the most memory that this process ever had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(work: Callable[[], object]) -> float:
    """Return how long it took, in seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def p95(work: Callable[[], object]) -> float:
    """Return the 95th percentile of how long it takes once it was done."""
    work()
    return statistics.quantiles((timed(work) for _ in range(TIMES)), n=20, method="inclusive")[-1]


def main() -> None:
    """Measure and print, or do one part in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=200, help="score windows; a long run has 2,000")
    parser.add_argument("--file", type=Path, help="keep the record here, or use the one that is there")
    parser.add_argument("--part", choices=("pages", "named", "sqlite"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part == "pages":
        json.dump(measure_pages(arguments.file, arguments.windows), sys.stdout)
    elif arguments.part == "named":
        json.dump(measure_named(arguments.file), sys.stdout)
    elif arguments.part == "sqlite":
        json.dump(measure_sqlite(arguments.file), sys.stdout)
    else:
        with tempfile.TemporaryDirectory() as folder:
            report(arguments.file or Path(folder, "record.db"), arguments.windows)


def report(record: Path, windows: int) -> None:
    """Run the parts and print what they found."""

    def part(name: str) -> Figures:
        command = [sys.executable, "-m", "tests.benchmarks.dashboard", "--windows", str(windows)]
        command += ["--part", name, "--file", str(record)]
        found: Figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        return found

    if not record.exists():
        long_run.write(record, windows)
    rows, size = LAYERS * EXPERTS * windows, record.stat().st_size
    print(f"{LAYERS * EXPERTS:,} experts x {windows:,} windows = {rows:,} rows, {size / 2**20:,.0f} MiB; in ms, p95 of")
    print(f"{TIMES} where it says page or named")
    found, sqlite = part("pages") | part("named"), part("sqlite")
    for name, value in found.items():
        if "GiB" in name:
            print(f"{name:46} {value:10.2f}")
        elif name in sqlite:
            ratio = sqlite[name] / value
            print(f"{name:46} {1000 * value:10.1f}   SQLite {1000 * sqlite[name]:10.1f}   ratio {ratio:7.1f}")
        else:
            print(f"{name:46} {1000 * value:10.1f}")
    asked = {name: value for name, value in found.items() if name.startswith(("page: ", "named: "))}
    slowest = max(asked, key=asked.__getitem__)
    print(f"slowest of {len(asked)}: {slowest}, {1000 * asked[slowest]:.0f} ms; the goal is {1000 * GOAL_S:.0f} ms")


if __name__ == "__main__":
    main()
