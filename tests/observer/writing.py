"""Write synthetic runs; as a script, one that its parent may kill: `writing.py DB` prints a line per transaction.

The script does not close its run before its input ends, so that it can be killed before that, however fast it is.
"""

import sys
from collections.abc import Container
from contextlib import nullcontext
from pathlib import Path

from observer.collect import Collector
from observer.db import RunStart, Writer, open_db
from observer.db.writer import TextLabels, write_validation, write_what_if
from observer.observation import MOST_WINDOWS, Observation
from observer.rows import ValidationRow, WhatIfRow
from observer.totals import Snapshot
from tests.observer.details import with_details
from tests.observer.streams import CONTEXTS, EXPERT_BYTES, Batch, batches

WINDOW_TOKENS = 150
VALIDATED = dict(statistic="trust", scope="global", rho=0.5, low=0.25, high=0.75, n=12, texts=24, definition_version=1)
REPLAYED = dict(budget_experts=4, budget_bytes=1000, is_own=1, accesses=90, misses=30, miss_ratio_low=0.25,
                miss_ratio_high=0.5, bytes_read=7500, evictions=26, reloads_soon=13, soon_tokens=16)  # fmt: skip


def start_of(name: str, texts: int) -> RunStart:
    return RunStart(
        name=name,
        checkpoint="/models/tiny",
        checkpoint_digest="d" * 64,
        model_family="tiny_moe",
        policy="lru",
        budget_experts=4,
        budget_bytes=1000,
        capture="contribution",
        config='{"batch": 4}',
        config_hash="c" * 64,
        versions="{}",
        sequences_planned=texts,
        parity="equal",
        parity_lines='["equal to stock"]',
    )


def write_run(
    db: Path,
    name: str = "one",
    count: int = 6,
    *,
    tell: bool = False,
    finish: bool = True,
    most_windows: int = MOST_WINDOWS,
) -> None:
    """Observe a synthetic run into a record."""
    engine = open_db(db)
    run = batches(1, count)
    labels = [TextLabels(f"text{ref.ordinal}", ref.context, "") for batch in run for ref in batch.texts]
    writer = Writer(engine, labels, most_windows=most_windows)
    observation = Observation(EXPERT_BYTES, CONTEXTS, window_tokens=WINDOW_TOKENS)

    def record(snapshot: Snapshot) -> None:
        writer.record(with_details(snapshot))
        if tell:
            print("recorded", flush=True)

    writer.start(start_of(name, len(labels)), EXPERT_BYTES)
    collector = Collector(observation, record)
    for batch in run:
        collector.begin(batch.texts, True)
        for event in batch.events:
            collector.emit(event)
    collector.close()
    if finish:
        if tell:
            sys.stdin.read()
        writer.finish("done")
        write_validation(engine, writer.run_id, [ValidationRow(**VALIDATED)])
        replayed = [WhatIfRow(phase="all", policy=policy, **REPLAYED) for policy in ("lru", "belady")]
        write_what_if(engine, writer.run_id, replayed, bytes_per_s=1e9)
    engine.dispose()


def observe(db: Path, run: list[Batch], name: str = "one", paused: Container[int] = ()) -> Path:
    """Observe given batches into a record, as a job does; those of the numbers `paused` come while it is paused."""
    engine = open_db(db)
    labels = [TextLabels(f"t{ref.ordinal}", ref.context, "") for batch in run for ref in batch.texts]
    writer = Writer(engine, labels)
    writer.start(start_of(name, len(labels)), EXPERT_BYTES)
    collector = Collector(Observation(EXPERT_BYTES, CONTEXTS, window_tokens=800), writer.record)
    for number, batch in enumerate(run):
        collector.begin(batch.texts, True)
        with collector.paused() if number in paused else nullcontext():
            for event in batch.events:
                collector.emit(event)
    collector.close()
    writer.finish("done")
    engine.dispose()
    return db


if __name__ == "__main__":
    write_run(Path(sys.argv[1]), count=300, tell=True)
