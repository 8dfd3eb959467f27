"""Merged windows say what their parts say together."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, create_engine

from observer.db.windows import AT_END, COUNTS, PER_USE, SUMS, Held, choose, make_room
from tests.observer.asking import ask
from tests.observer.writing import write_run

WINDOWS = "SELECT window_index, last_window, first_step, last_step, first_token, last_token FROM v_window ORDER BY 1"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run with all of its windows, and with four."""
    folder = tmp_path_factory.mktemp("windows")
    write_run(folder / "all.db", count=20)
    write_run(folder / "few.db", count=20, most_windows=4)
    return folder / "all.db", folder / "few.db"


def columns(db: Path, names: tuple[str, ...], first: int, last: int, where: str = "") -> dict[str, Any]:
    sql = f"SELECT {', '.join(names)} FROM expert_window WHERE window_index BETWEEN {first} AND {last} {where}"
    rows = ask(db, sql + " ORDER BY window_index, component, layer, expert")
    return {name: np.array([row[i] for row in rows]).reshape(-1, 12) for i, name in enumerate(names)}


def test_a_run_keeps_no_more_windows_than_it_may_and_they_cover_everything(records: tuple[Path, Path]) -> None:
    everything, few = (ask(db, WINDOWS) for db in records)
    assert len(everything) > 10 and len(few) in (4, 5)  # the last one was cut short by the end of the run
    assert few[0][::2] == everything[0][::2] and few[-1][1::2] == everything[-1][1::2]
    for before, after in pairwise(few):
        assert (after[0], after[2], after[4]) == (before[1] + 1, before[3] + 1, before[5] + 1)
    for name in SUMS:
        parts, whole = (ask(db, f"SELECT SUM({name}) FROM score_window")[0][0] for db in records)
        assert parts == pytest.approx(whole, rel=1e-12), name
    keys = "component, layer, expert"
    of_windows = ask(records[0], f"SELECT {keys}, SUM(hits), SUM(misses) FROM v_expert_window GROUP BY {keys}")
    for db in records:
        assert ask(db, f"SELECT {keys}, hits, misses FROM v_expert ORDER BY {keys}") == of_windows


def test_of_merged_windows_sums_add_up_means_are_weighted_and_ends_are_the_last(records: tuple[Path, Path]) -> None:
    names = ("uses", "load", "impact_mean", *COUNTS[1:], *PER_USE, *AT_END)
    merged = [(first, last) for first, last, *_ in ask(records[1], WINDOWS) if last > first]
    assert merged
    for first, last in merged:
        parts = columns(records[0], names, first, last)
        found = {name: values[0] for name, values in columns(records[1], names, first, first).items()}
        uses = parts["uses"]
        picks = np.repeat(uses.reshape(-1, 2, 6).sum(axis=2), 6, axis=1)  # of the expert's layer
        for name in COUNTS:
            np.testing.assert_allclose(found[name], parts[name].sum(axis=0), rtol=1e-12)
        for name in PER_USE:
            np.testing.assert_allclose(found[name], (parts[name] * uses).sum(axis=0) / uses.sum(axis=0), rtol=1e-12)
        for name in AT_END:
            np.testing.assert_array_equal(found[name], parts[name][-1])
        np.testing.assert_allclose(found["load"], uses.sum(axis=0) / picks.sum(axis=0), rtol=1e-12)
        impact = (parts["impact_mean"] * picks).sum(axis=0) / picks.sum(axis=0)
        np.testing.assert_allclose(found["impact_mean"], impact, rtol=1e-12)
    assert ask(records[1], "SELECT COUNT(DISTINCT window_index) FROM expert_window") == ask(
        records[1], "SELECT COUNT(*) FROM score_window"
    )


def window(connection: Connection, index: int, phase: str, tokens: int) -> None:
    row = (1, index, index, index, index, 0, 0, phase, tokens, *[1] * 9)
    connection.exec_driver_sql(
        "INSERT INTO score_window (run_id, window_index, last_window, first_step, last_step, first_token, last_token, "
        "phase, tokens, passes, nll_sum, predicted, hits, misses, loads, evictions, bytes_read, wall_ns) "
        f"VALUES ({', '.join('?' * len(row))})",
        row,
    )


def test_windows_of_different_phases_are_never_merged(tmp_path: Path) -> None:
    write_run(tmp_path / "r.db", count=1)
    engine = create_engine(f"sqlite:///{tmp_path / 'r.db'}")
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM score_window")
        for index in range(40):
            make_room(connection, 1, 6)
            window(connection, index, "decode" if index % 3 else "prefill", 100 if index % 3 == 0 else 10)
        rows = connection.exec_driver_sql(
            "SELECT phase, SUM(tokens), SUM(passes), COUNT(*) FROM score_window GROUP BY 1"
        )
        assert [tuple(row)[:3] for row in rows] == [("decode", 260, 26), ("prefill", 1400, 14)]
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM score_window").scalar_one() == 6
    engine.dispose()


def test_where_nothing_can_be_merged_a_window_more_is_kept(tmp_path: Path) -> None:
    write_run(tmp_path / "r.db", count=1)
    engine = create_engine(f"sqlite:///{tmp_path / 'r.db'}")
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM score_window")
        for index, phase in enumerate(("prefill", "decode")):
            make_room(connection, 1, 1)
            window(connection, index, phase, 1)
        assert connection.exec_driver_sql("SELECT COUNT(*) FROM score_window").scalar_one() == 2
    engine.dispose()


@pytest.mark.parametrize("windows", [45, 61, 100, 333, 1000])
def test_windows_stay_about_equally_long(windows: int) -> None:
    held: list[Held] = []
    for index in range(windows):
        if len(held) >= 40 and (pair := choose(held)) is not None:
            held[held.index(pair[0])] = pair[0]._replace(tokens=pair[0].tokens + pair[1].tokens)
            held.remove(pair[1])
        held.append(Held(index, "prefill", 4096))
    lengths = sorted(window.tokens for window in held)
    assert len(held) == 40 and lengths[-1] <= 3 * lengths[len(lengths) // 10]
