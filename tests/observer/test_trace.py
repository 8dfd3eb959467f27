"""Route traces: what is in the files, and what a crash or a full disk leaves."""

import csv
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from observer.collect import Collector
from observer.db import Writer, open_db
from observer.db.writer import TextLabels
from observer.errors import TraceError
from observer.gaps import Gaps
from observer.observation import Observation
from observer.state import pack, unpack
from observer.trace import OVER_CAP, TraceSettings, TraceWriter, trace_folder
from observer.trace_read import open_trace, write_csv
from segmoe.events import Routed
from tests.observer.streams import CONTEXTS, EXPERT_BYTES, EXPERTS, LAYERS, Batch, batches
from tests.observer.writing import start_of


def picks_of(run: Sequence[Batch], every: int = 1) -> list[tuple[Any, ...]]:
    """What a trace must hold, straight from the events."""
    rows = []
    for batch in run:
        for event in batch.events:
            if isinstance(event, Routed):
                for row in np.flatnonzero(event.position >= 0):
                    ordinal = batch.texts[event.sequence[row]].ordinal
                    if ordinal % every == 0:
                        ids = event.topk_ids[row].tolist()
                        weights = event.topk_weights[row].astype(np.float16).astype(float).tolist()
                        place = (event.step, event.layer, ordinal, int(event.position[row]))
                        rows.append((event.component, event.phase, *place, ids, weights))
    return rows


def traced(folder: Path, run: Sequence[Batch], settings: TraceSettings) -> tuple[TraceWriter, Gaps]:
    gaps = Gaps()
    writer = TraceWriter(folder, settings, gaps, EXPERTS)
    for batch in run:
        writer.seal()
        writer.begin(batch.texts)
        for event in batch.events:
            writer.take(event)
    writer.seal(rest=True)
    return writer, gaps


def read(folder: Path) -> list[tuple[Any, ...]]:
    sql = "SELECT component, phase, step, layer, sequence, position, ids, weights FROM read_parquet($files)"
    return duckdb.execute(sql, {"files": str(folder / "*.parquet")}).fetchall()


@pytest.mark.parametrize("every", [1, 3])
def test_a_trace_holds_each_token_of_each_layer_and_others_can_read_it(tmp_path: Path, every: int) -> None:
    run = batches(1, 8)
    traced(tmp_path, run, TraceSettings(every=every, file_rows=500))
    assert len(list(tmp_path.iterdir())) > 1
    assert read(tmp_path) == picks_of(run, every)


def test_impacts_are_kept_if_asked_for(tmp_path: Path) -> None:
    run = batches(1, 1)
    traced(tmp_path, run, TraceSettings(impacts=True))
    event = run[0].events[1]
    assert isinstance(event, Routed) and event.contribution is not None
    found = duckdb.execute("SELECT impacts FROM read_parquet($f) WHERE layer = 0", {"f": f"{tmp_path}/*"}).fetchall()
    wanted = event.contribution.impact()[event.position >= 0]
    np.testing.assert_array_equal(np.array([row[0] for row in found], np.float32), wanted.astype(np.float32))


def test_beyond_the_cap_rows_are_counted_and_not_kept(tmp_path: Path) -> None:
    run = batches(1, 8)
    _, gaps = traced(tmp_path, run, TraceSettings(cap_bytes=1, file_rows=300))
    kept = read(tmp_path)
    (gap,) = gaps.take_changed()
    assert gap.reason == OVER_CAP and len(kept) + gap.events == len(picks_of(run)) and kept
    assert gap.first_step > max(row[2] for row in kept)


def test_a_state_holds_what_is_buffered(tmp_path: Path) -> None:
    run = batches(1, 6)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    traced(whole, run, TraceSettings(file_rows=400))
    first = TraceWriter(parts, TraceSettings(file_rows=400), Gaps(), EXPERTS)
    for number, batch in enumerate(run):
        first.seal()
        second = TraceWriter(parts, TraceSettings(file_rows=400), Gaps(), EXPERTS)
        second.restore(unpack(pack(first.state())))
        first = second
        first.begin(batch.texts)
        for event in batch.events:
            first.take(event)
        assert number < 5 or first.seal(rest=True)
    assert [path.name for path in sorted(whole.iterdir())] == [path.name for path in sorted(parts.iterdir())]
    assert read(whole) == read(parts) == picks_of(run)


def test_what_a_crash_left_is_deleted_and_the_catalogued_stays(tmp_path: Path) -> None:
    writer, _ = traced(tmp_path, batches(1, 2), TraceSettings(file_rows=10))
    (tmp_path / "000009.parquet.part").write_bytes(b"half")
    (tmp_path / "000002.parquet").write_bytes(b"whole, but of no transaction")
    writer.delete_orphans({"000000.parquet", "000001.parquet"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.parquet", "000001.parquet"]


def test_a_disk_that_is_full_is_a_sentence_and_leaves_no_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TraceError, match="No space left on device"):
        traced(tmp_path, batches(1, 1), TraceSettings())
    assert list(tmp_path.glob("*.parquet")) == []


def test_the_catalogue_and_the_csv_say_what_is_on_disk(tmp_path: Path) -> None:
    db = tmp_path / "record.db"
    engine = open_db(db)
    run = batches(1, 6)
    labels = [TextLabels(str(i), "maths", "") for i in range(24)]
    writer = Writer(engine, labels)
    run_id = writer.start(start_of("traced", 24), EXPERT_BYTES)
    observation = Observation(EXPERT_BYTES, CONTEXTS)
    trace = TraceWriter(trace_folder(db, run_id), TraceSettings(file_rows=400), observation.gaps, EXPERTS)
    collector = Collector(observation, writer.record, trace=trace)
    for number, batch in enumerate(run):
        collector.begin(batch.texts, True, {"done": np.array(number)})
        for event in batch.events:
            collector.emit(event)
    collector.close({"done": np.array(len(run))})
    with engine.begin() as connection:
        rows = connection.exec_driver_sql(
            "SELECT file, rows, bytes, sha256 FROM v_trace ORDER BY file_index"
        ).fetchall()
    assert len(rows) > 1 and sum(row.rows for row in rows) == len(picks_of(run))
    for row in rows:
        content = (trace_folder(db, run_id) / row.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (row.bytes, row.sha256)

    out = io.StringIO()
    count = write_csv(open_trace(engine, None), out)
    engine.dispose()
    lines = [line for line in out.getvalue().splitlines() if not line.startswith("#")]
    found = list(csv.DictReader(lines))
    assert len(found) == count == 2 * len(picks_of(run))
    first = picks_of(run)[0]
    assert [int(row["expert"]) for row in found[:2]] == first[-2]
    assert (int(found[0]["turn"]), int(found[0]["step"]), int(found[0]["layer"])) == (first[4], first[5], first[3])
    assert {int(row["layer"]) for row in found} == set(LAYERS) and {row["phase"] for row in found} == {"0"}


def test_a_run_without_a_trace_is_told_how_to_make_one(tmp_path: Path) -> None:
    engine = open_db(tmp_path / "record.db")
    with pytest.raises(TraceError, match="run with --trace"):
        open_trace(engine, None)
    engine.dispose()
