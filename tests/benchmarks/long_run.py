"""A record as a run of weeks leaves it: 48 layers x 128 experts in so many score windows, and all detail that it keeps.

Values are random; how many rows there are, and what refers to what, is as the observer writes it. A second run has
trust alone, to be compared with.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from observer.db import open_db, tables
from observer.pairs import PAIRS_A_LAYER
from observer.residency import EVENTS_CAP

LAYERS, EXPERTS = 48, 128
COMPONENT = "thinker"
CONTEXTS = ("*", "code", "maths", "prose")
WINDOW_TOKENS, TEXT_TOKENS, MOMENT_TOKENS = 4096, 1024, 32
OTHER = 2  # the second run

MANY = "abs(random()) % 1000"
RANDOM = "(abs(random()) / 9223372036854775808.0)"
DEFAULTS = {"INTEGER": "1", "REAL": RANDOM, "TEXT": "'x'"}
KEY = dict(component=f"'{COMPONENT}'", layer="layer", expert="expert")
CHOSEN = dict(component=f"'{COMPONENT}'", layer=f"abs(random()) % {LAYERS}", expert=f"abs(random()) % {EXPERTS}")


def write(path: Path, windows: int) -> None:
    """Write the record."""
    open_db(path).dispose()
    texts = windows * WINDOW_TOKENS // TEXT_TOKENS
    moments = TEXT_TOKENS // MOMENT_TOKENS
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("create temp table number (i integer primary key)")
        numbers = max(EVENTS_CAP, texts * moments, LAYERS * EXPERTS)
        connection.executemany("insert into number values (?)", ((i,) for i in range(numbers)))
        grid = f"(select i / {EXPERTS} as layer, i % {EXPERTS} as expert from number where i < {LAYERS * EXPERTS})"
        json = dict.fromkeys(("config", "versions", "drops", "verdict"), "'{}'") | dict(parity_lines="'[]'")
        time = dict.fromkeys(("started_at", "heartbeat_at", "finished_at"), "'2026-01-01T00:00:00+00:00'")
        fill(connection, "run", "number where i in (1, 2)", run_id="i", name="'run ' || i", status="'done'", error="''",
             tokens=f"{windows * WINDOW_TOKENS}", **time, **json)  # fmt: skip
        for run_id in ("1", f"{OTHER}"):
            fill(connection, "expert", grid, run_id=run_id, bytes="9437184", hits=f"{3 * windows}", **KEY)
            for context in CONTEXTS:
                fill(connection, "expert_trust", grid, run_id=run_id, context=f"'{context}'", uses=MANY, **KEY,
                     load=f"{RANDOM} / 64", trust_low="0.2", trust_high="0.8")  # fmt: skip
        same = dict.fromkeys(("window_index", "last_window", "first_step", "last_step"), "i")
        fill(connection, "score_window", f"number where i < {windows}", **same, phase="'prefill'", hits="3",
             tokens=f"{WINDOW_TOKENS}", first_token=f"i * {WINDOW_TOKENS}",
             last_token=f"(i + 1) * {WINDOW_TOKENS} - 1")  # fmt: skip
        fill(connection, "expert_window", f"score_window w cross join {grid} order by window_index, layer, expert",
             window_index="w.window_index", uses=MANY, load=f"{RANDOM} / 64", trust_low="0.2", trust_high="0.8",
             hits="3", **KEY)  # fmt: skip
        fill(connection, "sequence", f"number where i < {texts}", ordinal="i", tokens=f"{TEXT_TOKENS}", text="''",
             text_id="'text ' || i", context=f"'{CONTEXTS[1]}'")  # fmt: skip
        fill(connection, "salience", f"number where i < {texts * moments}", ordinal=f"i / {moments}", text="''",
             position=f"i % {moments} * {MOMENT_TOKENS}", tokens=f"{MOMENT_TOKENS}",
             component=f"'{COMPONENT}'")  # fmt: skip
        fill(connection, "residency_event", f"number where i < {EVENTS_CAP}", **CHOSEN, event_index="i", step="i / 50",
             kind="case i % 2 when 0 then 'load' else 'evict' end", next_use_step="i / 50 + abs(random()) % 100",
             reason="case i % 2 when 0 then 'demand' else 'capacity' end", waited_ns="2000000")  # fmt: skip
        for after in (0, 1):  # pairs in a layer, and of a layer and the next
            pairs = f"number where i < {(LAYERS - after) * PAIRS_A_LAYER}"
            place = dict(layer=f"i / {PAIRS_A_LAYER}", other_layer=f"i / {PAIRS_A_LAYER} + {after}", count=MANY)
            fill(connection, "coactivation", pairs, component=f"'{COMPONENT}'", expert=f"i % {PAIRS_A_LAYER}",
                 other_expert=f"{EXPERTS} - 1 - i % {PAIRS_A_LAYER}", **place)  # fmt: skip


def fill(connection: sqlite3.Connection, table: str, source: str, **columns: str) -> None:
    """Insert what the expressions say of each row of a source; a column that is not named is made up, in run 1."""
    columns = dict(run_id="1") | columns
    kinds = {column.name: str(column.type) for column in tables.metadata.tables[table].columns}
    made = [columns.get(name, DEFAULTS[kind]) for name, kind in kinds.items()]
    connection.execute(f"insert into {table} ({', '.join(kinds)}) select {', '.join(made)} from {source}")
