"""A record made by hand, so that its answers can be worked out: two layers of four experts, two contexts, two runs."""

import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from observer.db import open_db

USES = {"a": {0: (600, 0, 100, 0), 1: (175, 175, 175, 175)}, "b": {0: (0, 200, 100, 0), 1: (75, 75, 75, 75)}}
USES["*"] = {layer: tuple(x + y for x, y in zip(USES["a"][layer], USES["b"][layer], strict=True)) for layer in (0, 1)}
TRUST = {0: (0.9, 0.6, 0.5, 0.1), 1: (0.4, 0.3, 0.2, 0.05)}
WINDOWS = 4


def half_width(layer: int, expert: int) -> float:
    return 0.3 if (layer, expert) == (0, 3) else 0.05


def entropy_share(uses: tuple[int, ...]) -> float:
    shares = [n / sum(uses) for n in uses if n]
    return -sum(share * math.log(share) for share in shares) / math.log(len(uses))


def make(db: Path) -> None:
    """Write it."""
    open_db(db).dispose()
    with closing(sqlite3.connect(db)) as connection, connection:
        for run_id, name in ((1, "first"), (2, "second")):
            _run(connection, run_id, name)
        _detail(connection)


def _run(connection: sqlite3.Connection, run_id: int, name: str) -> None:
    text = dict(status="done", error="", started_at="", heartbeat_at="", finished_at="", checkpoint="/m")
    text |= dict(checkpoint_digest="d", model_family="f", policy="lru", capture="contribution", config="{}")
    text |= dict(config_hash="h", versions="{}", parity="equal", parity_lines="[]", verdict='{"equal": true}')
    numbers = dict(budget_experts=4, budget_bytes=400, sequences=2, sequences_planned=2, tokens=4000, nll_sum=8000.0)
    numbers |= dict(predicted=4000, hits=120, misses=40, loads=40, evictions=20, bytes_read=4000, passes=8)
    insert(connection, "run", run_id=run_id, name=name, drops='{"lost": 10}', events_seen=90, events_dropped=10,
           attempts=1, **text, **numbers)  # fmt: skip
    for layer, values in TRUST.items():
        for expert, trust in enumerate(values):
            key = dict(run_id=run_id, component="model", layer=layer, expert=expert)
            insert(connection, "expert", **key, bytes=100)
            for context, uses in USES.items():
                shift = -0.4 if (run_id, layer, expert, context) == (2, 0, 0, "*") else 0.0
                _scores(connection, "expert_trust", key, trust + shift, uses[layer], context=context,
                        definition_version=1)  # fmt: skip


def _scores(
    connection: sqlite3.Connection, table: str, key: dict[str, Any], trust: float, uses: tuple[int, ...], **more: Any
) -> None:
    layer, expert = key["layer"], key["expert"]
    width = half_width(layer, expert)
    rest = dict.fromkeys(("convergence", "stability", "efficiency", "weight_mean", "ean", "reap", "impact_mean"), 0.5)
    rest |= dict.fromkeys(("block_mean", "block_m2", "window_cv"), 0.5)
    insert(connection, table, **key, trust=trust, trust_low=trust - width, trust_high=trust + width, blocks=9,
           windows=9, uses=uses[expert], load=uses[expert] / sum(uses), **rest, **more)  # fmt: skip


def _detail(connection: sqlite3.Connection) -> None:
    """What only the first run has."""
    for index in range(WINDOWS):
        insert(connection, "score_window", run_id=1, window_index=index, last_window=index, first_step=2 * index,
               last_step=2 * index + 1, first_token=1000 * index, last_token=1000 * index + 999, phase="prefill",
               passes=2, tokens=1000, nll_sum=2000.0, predicted=1000, hits=30, misses=10, loads=10, evictions=5,
               bytes_read=1000, wall_ns=10**9)  # fmt: skip
        for layer, values in TRUST.items():
            for expert in range(4):
                trust = values[3 - expert] if index == 0 else values[expert] - 0.1
                key = dict(run_id=1, window_index=index, component="model", layer=layer, expert=expert)
                uses = (1, 1, 1, 1) if index == 0 else USES["*"][layer]
                snarc = dict.fromkeys(("surprise", "novelty", "arousal", "reward", "conflict"), 0.5)
                _scores(connection, "expert_window", key, trust, uses, hits=1, misses=1, evictions=1, **snarc)
    for ordinal, context in enumerate(("a", "b")):
        insert(connection, "sequence", run_id=1, ordinal=ordinal, text_id=f"text{ordinal}", context=context, tokens=96,
               nll_sum=192.0, predicted=96, text="")  # fmt: skip
        for number, position in enumerate((0, 32, 64)):
            top = (ordinal, position) == (1, 32)
            scores = dict(surprise=0.9 if top else 0.5, novelty=0.5, arousal=0.5, reward=0.5, conflict=0.5)
            insert(connection, "salience", run_id=1, ordinal=ordinal, component="model", position=position, tokens=32,
                   salience=sum(scores.values()) / 5, nll_sum=32.0 * (number + 1), predicted=32, text="words",
                   definition_version=1, **scores)  # fmt: skip
    for other_layer, other, count, lift in ((0, 1, 30, 2.0), (1, 2, 300, 1.5), (1, 3, 5, 9.0)):
        insert(connection, "coactivation", run_id=1, component="model", layer=0, expert=0, other_layer=other_layer,
               other_expert=other, count=count, lift=lift)  # fmt: skip
    events = [("evict", 0, 1, 5), ("evict", 1, 2, 100), ("evict", 3, 3, -1), ("load", 0, 5, -1)]
    for index, (kind, expert, step, back) in enumerate(events):
        insert(connection, "residency_event", run_id=1, event_index=index, step=step, kind=kind, component="model",
               layer=0, expert=expert, reason="capacity" if kind == "evict" else "demand", bytes=100, read_ns=1000000,
               waited_ns=2000000, idle_steps=step, policy_score=float(step), trust=-1.0,
               next_use_step=back)  # fmt: skip
    insert(connection, "gap", run_id=1, reason="lost", first_step=3, last_step=4, count=10)
    for statistic, rho in (("trust", 0.5), ("reap", 0.8), ("load", 0.1)):
        insert(connection, "validation", run_id=1, statistic=statistic, scope="global", rho=rho, low=rho - 0.1,
               high=rho + 0.1, n=8, texts=20, definition_version=1)  # fmt: skip


def insert(connection: sqlite3.Connection, table: str, **row: Any) -> None:
    names = ", ".join(row)
    connection.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))
