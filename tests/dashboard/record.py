"""
Makes and changes records for the dashboard's tests, as a program of its own: `record.py make FILE`, `record.py sql
FILE STATEMENT` (prints the rows as JSON). A process must not open one SQLite file through two SQLite libraries, and
the tests' process reads records through ADBC.
"""

import json
import random
import sqlite3
import sys
from datetime import UTC, datetime
from typing import Any

CONTEXTS = ("*", "code", "dialogue", "prose")
# (run_id, name, component, layers, experts)
GRIDS = ((1, "small", "model", 5, 32), (2, "omni", "thinker", 6, 16), (2, "omni", "talker", 3, 8))
DEAD = (1, "model", 3, 9)


def make(path: str) -> None:
    """Write a record of two runs: one done, of one component; one going on, of two, that dropped events."""
    from observer.db import open_db  # slow, and `sql` does not need it

    open_db(path).dispose()
    connection = sqlite3.connect(path)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    common = {
        **dict(error="", started_at="2026-01-02T03:04:05+00:00", checkpoint="/models/some", checkpoint_digest="d"),
        **dict(model_family="olmoe", policy="lru", budget_experts=64, budget_bytes=1, capture="contribution"),
        **dict(config="{}", config_hash="h", versions="{}", sequences=4, sequences_planned=4, loads=300, evictions=200),
        **dict(bytes_read=10, hits=1500, misses=500, parity_lines="[]", drops="{}", predicted=1000),
    }
    done = dict(run_id=1, name="small", status="done", heartbeat_at="2026-01-02T03:09:05+00:00", parity="equal")
    done |= dict(
        tokens=123456, nll_sum=2345.0, events_seen=5000, events_dropped=0, finished_at="2026-01-02T03:09:05+00:00"
    )
    live = dict(run_id=2, name="omni", status="started", heartbeat_at=now, parity="unchecked", finished_at="")
    live |= dict(tokens=4096, nll_sum=3250.0, events_seen=9000, events_dropped=1000)
    for run in (done, live):
        _insert(connection, "run", common | run)
        for ordinal, context in enumerate(CONTEXTS[1:]):
            row = dict(run_id=run["run_id"], ordinal=ordinal, text_id=f"t{ordinal}", context=context)
            _insert(connection, "sequence", row | dict(tokens=32, nll_sum=62.0, predicted=31, text=""))
        _insert(connection, "score_window", window(run["run_id"], 0))

    for run_id, _, component, layers, experts in GRIDS:
        for layer in range(layers):
            for expert in range(experts):
                key = dict(run_id=run_id, component=component, layer=layer, expert=expert)
                _insert(connection, "expert", key | dict(bytes=4096))
            for context in CONTEXTS:
                for row in _layer(run_id, component, layer, experts, context):
                    _insert(connection, "expert_trust", row)
    connection.commit()
    connection.close()


def window(run_id: int, index: int) -> dict[str, Any]:
    """One row of the score windows."""
    first = 64 * index
    row = dict(run_id=run_id, window_index=index, first_step=index, last_step=index, first_token=first)
    row |= dict(
        last_token=first + 63, phase="prefill", tokens=64, nll_sum=126.0, predicted=63, wall_ns=1, hits=3, misses=1
    )
    return row | dict(loads=1, evictions=0, bytes_read=4096)


def _layer(run_id: int, component: str, layer: int, experts: int, context: str) -> list[dict[str, Any]]:
    random_ = random.Random(f"{run_id} {component} {layer} {context}")
    weights = [random_.lognormvariate(0, 0.8) for _ in range(experts)]
    weights = [0.0 if (run_id, component, layer, expert) == DEAD else w for expert, w in enumerate(weights)]
    rows = []
    for expert, weight in enumerate(weights):
        uses = round(2000 * weight)
        convergence, stability, efficiency = (random_.betavariate(2, 2) for _ in range(3))
        trust = 0.7 * convergence + 0.1 * stability + 0.2 * efficiency
        row = dict(run_id=run_id, component=component, layer=layer, expert=expert, context=context, trust=trust)
        row |= dict(trust_low=max(0.0, trust - 0.08), trust_high=min(1.0, trust + 0.06), convergence=convergence)
        row |= dict(stability=stability, efficiency=efficiency, uses=uses, blocks=uses // 100, definition_version=1)
        row |= dict(load=weight / sum(weights), weight_mean=random_.uniform(0.1, 0.4), ean=uses * 0.7)
        rows.append(row | dict(reap=random_.uniform(0.1, 0.9), impact_mean=random_.uniform(0, 0.01)))
    return rows


def _insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    names = ", ".join(f'"{name}"' for name in row)
    connection.execute(f"insert into {table} ({names}) values ({', '.join('?' * len(row))})", tuple(row.values()))


def sql(path: str, statement: str) -> list[dict[str, Any]]:
    """Run one statement and return its rows."""
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement)]


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    else:
        json.dump(sql(sys.argv[2], sys.argv[3]), sys.stdout)
