"""
Makes and changes records for the dashboard's tests, as a program of its own: `record.py make FILE`, `record.py sql
FILE STATEMENT...` (prints the last one's rows as JSON), `record.py serve` (the same, for each list [FILE, STATEMENT...]
that is a line of its input). A process must not open one SQLite file through two SQLite
libraries, and the tests' process reads records through ADBC.
"""

import contextlib
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
WINDOWS = {1: 12, 2: 1}  # score windows of each run
DIMENSIONS = ("surprise", "novelty", "arousal", "reward", "conflict")
EVIL = "<script>alert(1)</script> **bold** ![x](https://example.org/x.png) <b>tags</b>"
# Salience of run 1's windows of 32 tokens, by text; every score is this, but for one that is 0.1 higher.
SALIENCE = {0: (0.2, 0.3, 0.4, 0.3), 1: (0.5, 0.9, 0.5, 0.2), 2: (0.1, 0.7, 0.6, 0.2)}
NLL = {0: (2.0, 2.0, 2.0, 2.0), 1: (1.0, 3.0, 4.0, 2.0), 2: (2.0, 2.5, 3.5, 2.0)}
# (kind, step, layer, expert, reason, next_use_step) of run 1, in order
RESIDENCY = (
    *(("load", 0, 0, expert, "demand", -1) for expert in range(4)),
    *(("load", 1, 1, expert, "demand", -1) for expert in range(4)),
    ("evict", 2, 0, 0, "capacity", 3),
    ("load", 2, 2, 12, "demand", -1),
    ("evict", 3, 0, 1, "capacity", 20),
    ("load", 3, 0, 0, "demand", -1),
    ("evict", 5, 2, 12, "capacity", 9),
    ("load", 9, 2, 12, "demand", -1),
    ("evict", 12, 0, 2, "capacity", -1),
    ("load", 20, 0, 1, "prefetch", -1),
    ("evict", 30, 0, 3, "capacity", -1),
)
# (layer, expert, other_layer, other_expert, count, lift) of run 1
PAIRS = ((2, 3, 2, 12, 400, 3.5), (2, 12, 2, 20, 300, 0.5), (2, 12, 3, 7, 250, 6.25), (1, 4, 2, 12, 200, 2.0))
PAIRS += ((2, 12, 2, 30, 3, 99.0),)  # too few to tell
# misses of 2,000 accesses by policy and budget, of run 1, whose own is the second of lru
WHAT_IF = {
    "lru": {16: 1400, 64: 500, 128: 210},
    "use-rate": {16: 1200, 64: 480, 128: 220},
    "belady": {16: 1000, 64: 300, 128: 180},
}
# statistic, scope, rho, low, high of run 1
VALIDATION = (
    ("trust", "global", 0.54, 0.40, 0.60),
    ("impact_mean", "global", 0.88, 0.80, 0.90),
    ("load", "global", 0.09, -0.02, 0.20),
    ("trust", "within layer", 0.78, 0.62, 0.80),
    ("load", "within layer", 0.31, 0.20, 0.40),
    ("trust", "code", 0.77, 0.69, 0.79),
    ("load", "code", 0.68, 0.60, 0.75),
)


def make(path: str) -> None:
    """Write a record of two runs: one done, of one component; one going on, of two, that dropped events."""
    from observer.db import open_db  # slow, and `sql` does not need it

    open_db(path).dispose()
    connection = sqlite3.connect(path)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    common = {
        **dict(error="", started_at="2026-01-02T03:04:05+00:00", checkpoint="/models/some", checkpoint_digest="d"),
        **dict(model_family="olmoe", policy="lru", budget_experts=64, budget_bytes=1, capture="contribution"),
        **dict(
            config_hash="h",
            versions='{"torch": "2.13.0"}',
            config='{"experts": 64, "seed": 1, "corpus": "a.jsonl"}',
            sequences=4,
            sequences_planned=4,
            loads=300,
            evictions=200,
        ),
        **dict(bytes_read=10, hits=1500, misses=500, parity_lines="[]", drops="{}", predicted=1000),
    }
    done = dict(run_id=1, name="small", status="done", heartbeat_at="2026-01-02T03:09:05+00:00", parity="equal")
    done |= dict(
        tokens=123456, nll_sum=2345.0, events_seen=5000, events_dropped=0, finished_at="2026-01-02T03:09:05+00:00"
    )
    live = dict(run_id=2, name="omni", status="started", heartbeat_at=now, parity="unchecked", finished_at="")
    live |= dict(tokens=4096, nll_sum=3250.0, events_seen=9000, events_dropped=1000, budget_experts=32)
    live |= dict(queue_events=12, queue_most=128, queue_capacity=256, waited_ns=1_500_000_000)
    live |= dict(
        config='{"experts": 32, "seed": 1, "corpus": "b.jsonl"}', drops='{"queue full": 900, "not finite": 100}'
    )
    for run in (done, live):
        _insert(connection, "run", common | run)
        for ordinal, context in enumerate(CONTEXTS[1:]):
            row = dict(run_id=run["run_id"], ordinal=ordinal, text_id=f"t{ordinal}", context=context)
            _insert(connection, "sequence", row | dict(tokens=32, nll_sum=62.0, predicted=31, text=""))
        for index in range(WINDOWS[run["run_id"]]):
            _insert(connection, "score_window", window(run["run_id"], index))

    for run_id, _, component, layers, experts in GRIDS:
        for layer in range(layers):
            for expert in range(experts):
                key = dict(run_id=run_id, component=component, layer=layer, expert=expert)
                wanted = WINDOWS[run_id] * (WINDOWS[run_id] - 1) // 2 * ((run_id, component, layer, expert) != DEAD)
                _insert(connection, "expert", key | dict(bytes=4096, hits=3 * wanted, misses=wanted))
            for context in CONTEXTS:
                rows = _layer(run_id, component, layer, experts, context)
                for row in rows:
                    _insert(connection, "expert_trust", row)
                for index in range(WINDOWS[run_id]) if context == "*" else ():
                    for row in rows:
                        _insert(connection, "expert_window", expert_window(row, index))
    for row in details():
        _insert(connection, *row)
    connection.commit()
    connection.close()


def window(run_id: int, index: int) -> dict[str, Any]:
    """One row of the score windows."""
    first = 64 * index
    row = dict(run_id=run_id, window_index=index, first_step=index, last_step=index, first_token=first)
    row |= dict(
        last_token=first + 63, phase="prefill", tokens=64, nll_sum=126.0, predicted=63, wall_ns=1, hits=3, misses=1
    )
    return row | dict(loads=1, evictions=index % 2, bytes_read=4096, passes=1, last_window=index)


def expert_window(row: dict[str, Any], index: int) -> dict[str, Any]:
    """One expert in one score window: trust draws near to what it is now, salience repeats every seven windows."""
    last = WINDOWS[row["run_id"]] - 1
    drift = 0.02 * (last - index)
    changed = {name: max(0.0, row[name] - drift) for name in ("trust", "trust_low", "trust_high", "convergence")}
    own = 0.1 * ((index + row["expert"]) % 7) if row["uses"] else 0.0
    scores = {name: own for name in DIMENSIONS}
    counts = dict(hits=3 * index if row["uses"] else 0, misses=index if row["uses"] else 0, evictions=index % 2)
    kept = {name: value for name, value in row.items() if name not in ("context", "definition_version")}
    return kept | changed | scores | counts | dict(window_index=index, uses=row["uses"] // (last + 1))


def details() -> list[tuple[str, dict[str, Any]]]:
    """The rows of all other tables."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for ordinal, saliences in SALIENCE.items():
        for place, salience in enumerate(saliences):
            scores = dict.fromkeys(DIMENSIONS, salience)
            scores[DIMENSIONS[(ordinal + place) % 5]] += 0.1
            row = dict(run_id=1, ordinal=ordinal, component="model", position=32 * place, tokens=32, salience=salience)
            row |= dict(nll_sum=31 * NLL[ordinal][place], predicted=31, definition_version=1)
            rows.append(("salience", row | scores | dict(text=EVIL if (ordinal, place) == (1, 1) else "")))
    for index, (kind, step, layer, expert, reason, next_use) in enumerate(RESIDENCY):
        row = dict(run_id=1, event_index=index, step=step, kind=kind, component="model", layer=layer, expert=expert)
        row |= dict(reason=reason, bytes=4096, next_use_step=next_use, trust=-1.0)
        load = dict(read_ns=2_000_000, waited_ns=1_000_000, idle_steps=0, policy_score=0.0)
        evict = dict(read_ns=0, waited_ns=0, idle_steps=4, policy_score=0.25)
        rows.append(("residency_event", row | (load if kind == "load" else evict)))
    for layer, expert, other_layer, other_expert, count, lift in PAIRS:
        row = dict(run_id=1, component="model", layer=layer, expert=expert, other_layer=other_layer)
        rows.append(("coactivation", row | dict(other_expert=other_expert, count=count, lift=lift)))
    for statistic, scope, rho, low, high in VALIDATION:
        row = dict(run_id=1, statistic=statistic, scope=scope, rho=rho, low=low, high=high)
        rows.append(("validation", row | dict(n=160, texts=88, definition_version=1)))
    for policy, curve in WHAT_IF.items():
        for budget, misses in curve.items():
            row = dict(run_id=1, policy=policy, budget_experts=budget, budget_bytes=4096 * budget, accesses=2000)
            row |= dict(is_own=int((policy, budget) == ("lru", 64)), misses=misses, bytes_read=4096 * misses)
            row |= dict(miss_ratio_low=misses / 2000 - 0.02, miss_ratio_high=misses / 2000 + 0.03, bytes_per_s=1e9)
            row |= dict(evictions=misses - 10, reloads_soon=misses // 4, soon_tokens=16)
            rows += [("what_if", row | dict(phase=phase)) for phase in ("all", "prefill")]
    rows.append(("gap", dict(run_id=2, reason="queue full", first_step=3, last_step=5, count=900)))
    rows.append(("gap", dict(run_id=2, reason="not finite", first_step=7, last_step=7, count=100)))
    trace = dict(run_id=1, rows=640, bytes=9000, sha256="0" * 64)
    rows.append(("trace_file", trace | dict(file_index=0, file="a.parquet", first_step=0, last_step=7)))
    rows.append(("trace_file", trace | dict(file_index=1, file="b.parquet", first_step=8, last_step=11)))
    return rows


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
        row |= dict(reap=random_.uniform(0.1, 0.9), impact_mean=random_.uniform(0, 0.01))
        rows.append(row | dict(block_mean=0.01, block_m2=0.001, windows=uses // 50, window_cv=0.5))
    return rows


def _insert(connection: sqlite3.Connection, table: str, row: dict[str, Any]) -> None:
    names = ", ".join(f'"{name}"' for name in row)
    connection.execute(f"insert into {table} ({names}) values ({', '.join('?' * len(row))})", tuple(row.values()))


def sql(path: str, *statements: str) -> list[dict[str, Any]]:
    """Run statements in one transaction and return the rows of the last."""
    connection = sqlite3.connect(path)
    connection.row_factory = sqlite3.Row
    with contextlib.closing(connection), connection:
        return [[dict(row) for row in connection.execute(statement)] for statement in statements][-1]


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2])
    elif sys.argv[1] == "serve":
        for line in sys.stdin:
            print(json.dumps(sql(*json.loads(line))), flush=True)
    else:
        json.dump(sql(*sys.argv[2:]), sys.stdout)
