"""Writes the record: starts a run, adds what is new with how things stand, finishes it. Opening it is session.py.

One writer per run; each call is one transaction, so that a kill at any moment leaves whole windows. Merging windows is
windows.py.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sqlalchemy import Connection, Engine, Table
from sqlalchemy.exc import DBAPIError

from observer.db import tables
from observer.db.session import explain
from observer.db.windows import make_room
from observer.errors import DatabaseError, RunNameTaken
from observer.observation import MOST_WINDOWS
from observer.rows import CoactivationRows, ExpertWindowRows, SalienceRows, ValidationRow, WhatIfRow
from observer.state import Arrays, pack, unpack
from observer.totals import QueueState, ScoreTable, Snapshot, TextSeen, Totals, Window
from observer.trust import DEFINITION_VERSION
from segmoe.events import ExpertKey

TOTALS = tuple(f.name for f in fields(Totals))


def utc_now() -> str:
    """The time as the record writes it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """What is known of a run when it starts; the names are columns of the run."""

    name: str
    checkpoint: str
    checkpoint_digest: str
    model_family: str
    policy: str
    budget_experts: int
    budget_bytes: int
    capture: str
    config: str  # JSON
    config_hash: str
    versions: str  # JSON
    sequences_planned: int
    parity: str  # equal, different, unchecked
    parity_lines: str  # JSON list
    verdict: str = "{}"  # JSON


@dataclass(frozen=True, slots=True)
class TextLabels:
    """What the record says of a text besides what was seen of it."""

    text_id: str
    context: str
    text: str  # '' unless asked for


class Labels(Protocol):
    """A list or a mapping: the labels of the text with this ordinal."""

    def __getitem__(self, ordinal: int, /) -> TextLabels: ...


class Writer:
    """Writes one run; `start` or `resume` first, then `record` any number of times, then `finish`."""

    def __init__(
        self,
        engine: Engine,
        labels: Labels,
        now: Callable[[], str] = utc_now,
        *,
        most_windows: int = MOST_WINDOWS,
        passage: Callable[[int, int, int], str] | None = None,
    ) -> None:
        self.run_id = 0
        self._engine = engine
        self._labels = labels
        self._now = now
        self._most_windows = most_windows
        self._passage = passage  # of ordinal, position and tokens; without one the record holds no text of moments

    def start(self, run: RunStart, expert_bytes: Mapping[ExpertKey, int]) -> int:
        """Add the run and its experts; raise RunNameTaken if there is one of this name."""
        now = self._now()
        row = asdict(run) | dict.fromkeys(TOTALS, 0)
        row |= {"status": "started", "error": "", "started_at": now, "heartbeat_at": now, "finished_at": ""}
        row |= {"sequences": 0, "events_seen": 0, "events_dropped": 0, "drops": "{}", "passes": 0, "attempts": 1}
        row |= dict.fromkeys(QueueState._fields, 0)
        with self._transaction() as connection:
            taken = connection.exec_driver_sql("SELECT 1 FROM run WHERE name = ?", (run.name,)).first()
            if taken is not None:
                raise RunNameTaken(run.name)
            _insert(connection, tables.run, list(row), [tuple(row.values())])
            self.run_id = int(connection.exec_driver_sql("SELECT last_insert_rowid()").scalar_one())
            _insert(
                connection,
                tables.expert,
                ["run_id", "component", "layer", "expert", "bytes"],
                [(self.run_id, *key, count) for key, count in sorted(expert_bytes.items())],
            )
        return self.run_id

    def resume(self, run_id: int) -> Arrays | None:
        """Go on with a run: open it again, drop its windows that were cut short, return its state (None: no state)."""
        self.run_id = run_id
        with self._transaction() as connection:
            state = read_state(connection, run_id)
            begun = connection.exec_driver_sql("SELECT sequences, passes FROM run WHERE run_id = ?", (run_id,)).one()
            if state is None and any(begun):
                raise DatabaseError(
                    _path(self._engine), "holds no state of this run to go on from; choose another name with --run"
                )
            kept = whole_windows(state) or 0
            _count_residency(connection, run_id, since=kept, times=-1)
            for table in ("score_window", "expert_window"):
                connection.exec_driver_sql(
                    f"DELETE FROM {table} WHERE run_id = ? AND window_index >= ?", (run_id, kept)
                )
            files = 0 if state is None else int(state.get("trace/files", 0))
            connection.exec_driver_sql("DELETE FROM trace_file WHERE run_id = ? AND file_index >= ?", (run_id, files))
            connection.exec_driver_sql(
                "UPDATE run SET status = 'started', error = '', finished_at = '', heartbeat_at = ?, "
                "attempts = attempts + 1 WHERE run_id = ?",
                (self._now(), run_id),
            )
        return state

    def record(self, snapshot: Snapshot) -> None:
        """Add what is new, replace the scores, the totals and the state, beat the heart; all or nothing."""
        with self._transaction() as connection:
            self._windows(connection, snapshot)
            _insert(connection, tables.sequence, TEXT_COLUMNS, [self._text(t) for t in snapshot.texts])
            for table in snapshot.tables:
                _run_sql(connection, UPSERT_TRUST, self._trust(table))
            self._detail(connection, snapshot)
            if snapshot.state is not None:
                _run_sql(connection, UPSERT_STATE, [(self.run_id, STATE, pack(snapshot.state))])
            totals = [getattr(snapshot.totals, name) for name in TOTALS]
            drops = sum(snapshot.drops.values())
            connection.exec_driver_sql(
                f"UPDATE run SET {', '.join(f'{name} = ?' for name in TOTALS)}, sequences = sequences + ?, passes = ?, "
                "events_seen = ?, events_dropped = ?, drops = ?, heartbeat_at = ? WHERE run_id = ?",
                (
                    *totals,
                    len(snapshot.texts),
                    snapshot.passes,
                    snapshot.events_seen,
                    drops,
                    json.dumps(snapshot.drops, sort_keys=True),
                    self._now(),
                    self.run_id,
                ),
            )

    def _windows(self, connection: Connection, snapshot: Snapshot) -> None:
        """Add windows one after the other, each after room was made; what is cut short is not merged: it may go."""
        whole = whole_windows(snapshot.state)
        for window in snapshot.windows:
            if whole is None or window.window_index < whole:
                make_room(connection, self.run_id, self._most_windows)
            _insert(connection, tables.window, WINDOW_COLUMNS, [self._window(window)])
            for rows in snapshot.expert_windows:
                if rows.window_index == window.window_index:
                    tuples = _expert_window(self.run_id, rows)
                    _insert(connection, tables.expert_window, EXPERT_WINDOW_COLUMNS, tuples)
            _count_residency(connection, self.run_id, since=window.window_index)

    def _detail(self, connection: Connection, snapshot: Snapshot) -> None:
        """Add the rows of the tables of detail."""
        run = self.run_id
        for moments in snapshot.salience:
            _insert(connection, tables.salience, SALIENCE_COLUMNS, _salience(run, moments, self._passage))
        for pairs in snapshot.coactivation:
            connection.exec_driver_sql(
                "DELETE FROM coactivation WHERE run_id = ? AND component = ?", (run, pairs.component)
            )
            _insert(connection, tables.coactivation, COACTIVATION_COLUMNS, _coactivation(run, pairs))
        _run_sql(connection, UPSERT_GAP, [(run, *gap) for gap in snapshot.gaps])
        _insert(connection, tables.residency_event, RESIDENCY_COLUMNS, [(run, *row) for row in snapshot.residency])
        _run_sql(
            connection,
            "UPDATE residency_event SET next_use_step = ? WHERE run_id = ? AND event_index = ?",
            [(use.step, run, use.event_index) for use in snapshot.next_uses],
        )
        _insert(connection, tables.trace_file, TRACE_COLUMNS, [(run, *file) for file in snapshot.trace_files])

    def drops(self, drops: Mapping[str, int]) -> None:
        """Set what was not recorded, where no snapshot can be."""
        with self._transaction() as connection:
            connection.exec_driver_sql(
                "UPDATE run SET events_dropped = ?, drops = ? WHERE run_id = ?",
                (sum(drops.values()), json.dumps(drops, sort_keys=True), self.run_id),
            )

    def beat(self, queue: QueueState) -> None:
        """Tell readers that the job is alive, and how full its queue is."""
        with self._transaction() as connection:
            connection.exec_driver_sql(
                f"UPDATE run SET heartbeat_at = ?, {', '.join(f'{name} = ?' for name in queue._fields)} "
                "WHERE run_id = ?",
                (self._now(), *queue, self.run_id),
            )

    def finish(self, status: str, error: str = "") -> None:
        """Close the run as done, cancelled or error."""
        now = self._now()
        with self._transaction() as connection:
            connection.exec_driver_sql(
                "UPDATE run SET status = ?, error = ?, heartbeat_at = ?, finished_at = ? WHERE run_id = ?",
                (status, error, now, now, self.run_id),
            )

    def _transaction(self) -> AbstractContextManager[Connection]:
        return _committing(self._engine)

    def _window(self, window: Window) -> tuple[Any, ...]:
        return (self.run_id, *(getattr(window, name) for name in WINDOW_COLUMNS[1:]))

    def _text(self, seen: TextSeen) -> tuple[Any, ...]:
        labels = self._labels[seen.ordinal]
        return (
            self.run_id,
            seen.ordinal,
            labels.text_id,
            labels.context,
            seen.tokens,
            seen.nll_sum,
            seen.predicted,
            labels.text,
        )

    def _trust(self, table: ScoreTable) -> Any:
        experts = table.scores.trust.shape[1]
        layers = chain.from_iterable(repeat(layer, experts) for layer in table.layers)
        numbers = list(range(experts)) * len(table.layers)
        columns = [column.ravel().tolist() for column in table.scores]
        fixed = (repeat(self.run_id), repeat(table.component), layers, numbers, repeat(table.context))
        return zip(*fixed, *columns, repeat(DEFINITION_VERSION), strict=False)  # the repeats have no end


def write_validation(engine: Engine, run_id: int, rows: Iterable[ValidationRow]) -> None:
    """Store how well the run's statistics foretold; earlier rows of the same statistic and scope are replaced."""
    with engine.begin() as connection:
        _run_sql(connection, UPSERT_VALIDATION, [(run_id, *astuple(row)) for row in rows])


def write_what_if(engine: Engine, run_id: int, rows: Sequence[WhatIfRow], *, bytes_per_s: float) -> None:
    """Add what was replayed of a run, in one transaction; a row of the same policy and budget is replaced.

    Rows of an earlier trace go (the run went on since), and all rows that stay take this rate of the disk.
    """
    accesses = max(row.accesses for row in rows)  # of phase all
    with _committing(engine) as connection:
        if connection.exec_driver_sql("SELECT 1 FROM run WHERE run_id = ?", (run_id,)).first() is None:
            raise DatabaseError(_path(engine), "does not hold the run any more; nothing was stored")
        earlier = connection.exec_driver_sql("SELECT MAX(accesses) FROM what_if WHERE run_id = ?", (run_id,)).scalar()
        if earlier != accesses:
            connection.exec_driver_sql("DELETE FROM what_if WHERE run_id = ?", (run_id,))
        _run_sql(connection, UPSERT_WHAT_IF, [(run_id, *row, bytes_per_s) for row in rows])
        connection.exec_driver_sql("UPDATE what_if SET bytes_per_s = ? WHERE run_id = ?", (bytes_per_s, run_id))


@contextmanager
def _committing(engine: Engine) -> Iterator[Connection]:
    """Begin and commit; what the database refuses becomes a DatabaseError."""
    try:
        with engine.begin() as connection:
            yield connection
    except (DBAPIError, sqlite3.Error) as error:
        raise DatabaseError(_path(engine), explain(error.orig if isinstance(error, DBAPIError) else error)) from error


def _path(engine: Engine) -> Path:
    return Path(engine.url.database or "")


def read_state(connection: Connection, run_id: int) -> Arrays | None:
    """What a run goes on from; None before it was first recorded, and once it was dropped."""
    found = connection.exec_driver_sql(
        "SELECT content FROM run_state WHERE run_id = ? AND name = ?", (run_id, STATE)
    ).first()
    return None if found is None else unpack(found[0])


def whole_windows(state: Arrays | None) -> int | None:
    """How many score windows of a run were not cut short; None if nobody knows, and it cannot go on."""
    return None if state is None else int(state["observation/windows_total"])


def _expert_window(run_id: int, rows: ExpertWindowRows) -> Any:
    layers, experts = rows.scores.trust.shape
    arrays = (*rows.scores, *(getattr(rows, name) for name in EXPERT_WINDOW_COLUMNS[-8:]))
    fixed = (repeat(run_id), repeat(rows.window_index), repeat(rows.component))
    numbers = (np.repeat(rows.layers, experts).tolist(), list(range(experts)) * layers)
    return zip(*fixed, *numbers, *(array.ravel().tolist() for array in arrays), strict=False)


def _count_residency(connection: Connection, run_id: int, *, since: int, times: int = 1) -> None:
    """Add to each expert's totals what its windows say from one on; a new window is the last one."""
    connection.exec_driver_sql(COUNT_RESIDENCY, {"run": run_id, "since": since, "times": times})


def _salience(run_id: int, rows: SalienceRows, passage: Callable[[int, int, int], str] | None) -> Any:
    arrays = [getattr(rows, name).tolist() for name in SALIENCE_COLUMNS[3:-2]]
    ordinal = rows.ordinal.tolist()
    text = repeat("") if passage is None else map(passage, ordinal, rows.position.tolist(), rows.tokens.tolist())
    return zip(
        repeat(run_id), ordinal, repeat(rows.component), *arrays, repeat(rows.definition_version), text, strict=False
    )


def _coactivation(run_id: int, rows: CoactivationRows) -> Any:
    arrays = [getattr(rows, name).tolist() for name in COACTIVATION_COLUMNS[2:]]
    return zip(repeat(run_id), repeat(rows.component), *arrays, strict=False)


def _insert(connection: Connection, table: Table, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert tuples; they may be made while they are inserted."""
    _run_sql(connection, _insert_sql(table, columns), rows)


def _run_sql(connection: Connection, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
    """Run a statement for each row through the driver itself: five times as fast as through Core (measured)."""
    if isinstance(rows, list) and not rows:
        return
    cursor = connection.connection.cursor()
    try:
        cursor.executemany(sql, rows)  # type: ignore[arg-type]  # an iterator will do
    finally:
        cursor.close()


def _insert_sql(table: Table, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def _upsert_sql(table: Table, columns: Sequence[str]) -> str:
    key = [column.name for column in table.primary_key]
    rest = [name for name in columns if name not in key]
    changes = ", ".join(f"{name} = excluded.{name}" for name in rest)
    return f"{_insert_sql(table, columns)} ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"


def _names(table: Table) -> tuple[str, ...]:
    return tuple(column.name for column in table.columns)


STATE = "job"
WINDOW_COLUMNS = _names(tables.window)
TEXT_COLUMNS = _names(tables.sequence)
EXPERT_WINDOW_COLUMNS = _names(tables.expert_window)
SALIENCE_COLUMNS = _names(tables.salience)
COACTIVATION_COLUMNS = _names(tables.coactivation)
RESIDENCY_COLUMNS = _names(tables.residency_event)
TRACE_COLUMNS = _names(tables.trace_file)
COUNT_RESIDENCY = """
UPDATE expert AS e SET hits = e.hits + :times * w.hits, misses = e.misses + :times * w.misses
FROM (
  SELECT component, layer, expert, SUM(hits) AS hits, SUM(misses) AS misses
  FROM expert_window WHERE run_id = :run AND window_index >= :since GROUP BY component, layer, expert
) AS w
WHERE e.run_id = :run AND e.component = w.component AND e.layer = w.layer AND e.expert = w.expert"""
UPSERT_TRUST = _upsert_sql(tables.expert_trust, _names(tables.expert_trust))
UPSERT_STATE = _upsert_sql(tables.run_state, _names(tables.run_state))
UPSERT_GAP = _upsert_sql(tables.gap, _names(tables.gap))
UPSERT_VALIDATION = _upsert_sql(tables.validation, _names(tables.validation))
UPSERT_WHAT_IF = _upsert_sql(tables.what_if, _names(tables.what_if))
