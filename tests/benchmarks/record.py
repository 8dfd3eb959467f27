"""How large is the record of a week, and how fast is it written?

    python -m tests.benchmarks.record FOLDER [--tokens 50000000] [--window-tokens 24000]

Writes what a run on 48 layers x 128 experts records, with figures made up but as long as real ones: every expert in
every score window, salience, texts, trust in five contexts, co-activation, residency events, and the state to go on
from. Time is accelerated: nothing is computed, windows begin six times as long as they do by default (the number that
is kept at the end is the same), and what only replaces earlier rows (trust in five contexts, the state) is written with
every tenth window. Then the same rows through plain `executemany`, and the same scalars through MLflow's SQLite store,
if it is installed: pip install mlflow-skinny.
"""

from __future__ import annotations

import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import numpy as np

from observer.db import RunStart, Writer, open_db
from observer.db.writer import EXPERT_WINDOW_COLUMNS, TextLabels, _expert_window
from observer.ledger import Scores
from observer.rows import CoactivationRows, ExpertWindowRows, ResidencyRow, SalienceRows
from observer.totals import ScoreTable, Snapshot, TextSeen, Totals, Window
from segmoe.events import ExpertKey

LAYERS, EXPERTS, TOP_K = 48, 128, 8
CONTEXTS = ("*", "english", "maths", "python", "spanish")
TEXT_TOKENS, SALIENCE_TOKENS = 256, 32
RESIDENCY_EVENTS = 100_000
STATE_BYTES = 5_000_000
REPLACED_EVERY = 10
RNG = np.random.default_rng(0)
SHAPE = (LAYERS, EXPERTS)
INTEGERS = frozenset({"uses", "blocks", "windows"})


def scores(tokens: int) -> Scores:
    """Figures of the length of real ones."""
    whole = RNG.integers(0, tokens * TOP_K * 2 // EXPERTS, SHAPE)
    return Scores(*(whole if name in INTEGERS else RNG.random(SHAPE) for name in Scores._fields))


def snapshots(tokens: int, window_tokens: int) -> Iterator[Snapshot]:
    """One for each window of the run."""
    texts_done, totals = 0, Totals()
    for index in range(tokens // window_tokens):
        window = Window(
            window_index=index, first_step=index, last_step=index, first_token=totals.tokens, phase="prefill", passes=8,
            tokens=window_tokens, nll_sum=3.1 * window_tokens, predicted=window_tokens, hits=9000, misses=900,
            loads=900, evictions=900, bytes_read=900 * 9437184, wall_ns=10**9,
        )  # fmt: skip
        totals.tokens += window_tokens
        texts = range(texts_done, totals.tokens // TEXT_TOKENS)
        texts_done = totals.tokens // TEXT_TOKENS
        table = scores(window_tokens)
        yield Snapshot(
            windows=(window,),
            texts=tuple(TextSeen(ordinal=n, tokens=TEXT_TOKENS, nll_sum=3.1 * n, predicted=255) for n in texts),
            tables=tuple(ScoreTable("model", tuple(range(LAYERS)), context, table) for context in CONTEXTS)
            if index % REPLACED_EVERY == 0
            else (),
            totals=totals,
            events_seen=index * LAYERS,
            drops={},
            passes=index,
            expert_windows=(expert_window(index, table),),
            salience=(salience(texts),),
            coactivation=(pairs(),) if index == 0 else (),
            residency=tuple(residency(index, 2000)) if index * 2000 < RESIDENCY_EVENTS else (),
            state={"observation/windows_total": np.array(index + 1), "rest": RNG.random(STATE_BYTES // 8)}
            if index % REPLACED_EVERY == 0
            else None,
        )


def expert_window(index: int, table: Scores) -> ExpertWindowRows:
    """Every expert in one window."""
    dimensions = ("surprise", "novelty", "arousal", "reward", "conflict")
    return ExpertWindowRows(
        window_index=index, component="model", layers=tuple(range(LAYERS)), scores=table,
        **{name: RNG.random(SHAPE) for name in dimensions},
        **{name: RNG.integers(0, 100, SHAPE) for name in ("hits", "misses", "evictions")},
    )  # fmt: skip


def salience(texts: range) -> SalienceRows:
    """The moments of these texts."""
    per_text = TEXT_TOKENS // SALIENCE_TOKENS
    count = per_text * len(texts)
    dimensions = ("surprise", "novelty", "arousal", "reward", "conflict", "salience")
    return SalienceRows(
        component="model", ordinal=np.repeat(np.array(texts, np.int64), per_text),
        position=np.tile(np.arange(per_text) * SALIENCE_TOKENS, len(texts)),
        tokens=np.full(count, SALIENCE_TOKENS), **{name: RNG.random(count) for name in dimensions},
        nll_sum=RNG.random(count), predicted=np.full(count, SALIENCE_TOKENS), definition_version=1,
    )  # fmt: skip


def pairs() -> CoactivationRows:
    """All pairs within the layers."""
    first, second = np.triu_indices(EXPERTS, 1)
    layer = np.repeat(np.arange(LAYERS), len(first))
    count = len(layer)
    return CoactivationRows(
        component="model", layer=layer, expert=np.tile(first, LAYERS), other_layer=layer,
        other_expert=np.tile(second, LAYERS), count=RNG.integers(0, 10**6, count), lift=RNG.random(count),
    )  # fmt: skip


def residency(index: int, count: int) -> Iterator[ResidencyRow]:
    """Loads and evictions in turn."""
    for n in range(index * count, (index + 1) * count):
        kind = "evict" if n % 2 else "load"
        yield ResidencyRow(n, index, kind, "model", n % LAYERS, n % EXPERTS, "capacity", 9437184, 10**7, 10**7)


class Labels:
    """Any text's."""

    def __getitem__(self, ordinal: int) -> TextLabels:
        return TextLabels(f"corpus/document {ordinal // 9}#{ordinal % 9}", CONTEXTS[1 + ordinal % 4], "")


def start() -> RunStart:
    """A run."""
    return RunStart(
        name="week", checkpoint="/models/x", checkpoint_digest="d" * 64, model_family="qwen3_moe", policy="lru",
        budget_experts=900, budget_bytes=900 * 9437184, capture="contribution", config="{}", config_hash="c" * 64,
        versions="{}", sequences_planned=0, parity="equal", parity_lines="[]",
    )  # fmt: skip


def write_week(db: Path, tokens: int, window_tokens: int) -> dict[str, float]:
    """Write the run; return figures."""
    engine = open_db(db)
    writer = Writer(engine, Labels())
    writer.start(start(), {ExpertKey("model", layer, n): 9437184 for layer in range(LAYERS) for n in range(EXPERTS)})
    spent, slowest, done, total = 0.0, 0.0, 0, tokens // window_tokens
    for snapshot in snapshots(tokens, window_tokens):
        began = time.perf_counter()
        writer.record(snapshot)
        took = time.perf_counter() - began
        spent, slowest, done = spent + took, max(slowest, took), done + 1
        if done % 200 == 0:
            click.echo(f"{done} of {total} windows, {db.stat().st_size / 1e9:.2f} GB, {spent:.0f} s", err=True)
    engine.dispose()
    with closing(sqlite3.connect(db)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        kept = connection.execute("SELECT COUNT(*) FROM score_window").fetchone()[0]
    return {"seconds": spent, "slowest": slowest, "bytes": db.stat().st_size, "windows": kept, "written": total}


def rates(folder: Path, windows: int = 30) -> tuple[float, float]:
    """Rows a second of expert_window, in turn: by the writer from arrays, by executemany from finished tuples."""
    writer_rates, raw_rates = [], []
    writer_db, raw_db = folder / "writer.db", folder / "raw.db"
    engine = open_db(writer_db)
    open_db(raw_db).dispose()
    writer = Writer(engine, Labels())
    writer.start(start(), {})
    raw = sqlite3.connect(raw_db, isolation_level=None)
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "page_size=8192"):
        raw.execute(f"PRAGMA {pragma}")
    sql = f"INSERT INTO expert_window VALUES ({', '.join('?' * len(EXPERT_WINDOW_COLUMNS))})"
    for index in range(windows):
        rows = expert_window(index, scores(4096))
        window = Window(window_index=index, first_step=index, last_step=index, first_token=0, phase="prefill", tokens=1)
        snapshot = Snapshot(windows=(window,), texts=(), tables=(), totals=Totals(), events_seen=0, drops={},
                            expert_windows=(rows,))  # fmt: skip
        began = time.perf_counter()
        writer.record(snapshot)
        writer_rates.append(LAYERS * EXPERTS / (time.perf_counter() - began))
        tuples: list[Any] = list(_expert_window(1, rows))
        began = time.perf_counter()
        raw.execute("BEGIN IMMEDIATE")
        raw.executemany(sql, tuples)
        raw.execute("COMMIT")
        raw_rates.append(LAYERS * EXPERTS / (time.perf_counter() - began))
    raw.close()
    engine.dispose()
    return statistics.median(writer_rates), statistics.median(raw_rates)


def mlflow_rate(folder: Path, batches: int = 5) -> float | None:
    """Scalars a second through MLflow's SQLite store, in batches of the largest size that it takes; None without it."""
    try:
        from mlflow.entities import Metric
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    except ImportError:
        return None
    store = SqlAlchemyStore(f"sqlite:///{folder / 'mlflow.db'}", str(folder / "artifacts"))
    run = store.create_run(store.create_experiment("x"), "u", 0, [], "r").info.run_id
    took = []
    for step in range(batches):
        metrics = [Metric(f"layer{n // EXPERTS}/expert{n % EXPERTS}", float(n), 0, step) for n in range(1000)]
        began = time.perf_counter()
        store.log_batch(run, metrics, [], [])
        took.append(1000 / (time.perf_counter() - began))
    return statistics.median(took)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tokens", default=50_000_000, show_default=True, help="Of the run.")
@click.option("--window-tokens", default=24000, show_default=True, help="Of a window before merging.")
@click.option("--rates-only", is_flag=True, help="Only rows a second.")
def main(folder: Path, tokens: int, window_tokens: int, rates_only: bool) -> None:
    """Write a week, then measure rates; the folder is to be new and stays."""
    folder.mkdir(parents=True)
    if not rates_only:
        week = write_week(folder / "week.db", tokens, window_tokens)
        click.echo(
            f"{tokens:,} tokens, {LAYERS} layers x {EXPERTS} experts: {week['bytes'] / 1e9:.2f} GB, "
            f"{week['bytes'] / tokens:.1f} bytes a token; {week['written']:,.0f} windows of {window_tokens:,} tokens "
            f"written, {week['windows']:,.0f} kept; {week['seconds']:.0f} s in the writer, the slowest transaction "
            f"{week['slowest']:.2f} s"
        )
    ours, raw = rates(folder)
    click.echo(f"writer {ours:,.0f} rows/s, executemany {raw:,.0f} rows/s: {ours / raw:.2f} of it")
    scalars = len(Scores._fields) + 8
    other = mlflow_rate(folder)
    if other is None:
        click.echo("MLflow is not installed: nothing to compare scalars with")
    else:
        click.echo(
            f"{ours * scalars:,.0f} scalars/s, MLflow's SQLite store {other:,.0f}: {ours * scalars / other:,.0f} times"
        )


if __name__ == "__main__":
    main()
