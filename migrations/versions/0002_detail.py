"""Detail: score windows by expert, salience, residency, co-activation, gaps, validation, trace, and how to go on.

Each view says in its first line what a row is, and after each column what that is; `observer db schema` prints them.

Revision ID: 0002
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str = "0001"

VIEWS = {
    "v_run": """
-- one observation run; counters over all of its passes, NLL over the texts of the corpus
SELECT
  run_id,             -- what the other views call the run
  name,               -- unique
  status,             -- started, done, cancelled, error
  error,              -- one line; '' if none
  started_at,         -- ISO-8601 UTC
  heartbeat_at,       -- ISO-8601 UTC; old while status is started: the job was killed
  finished_at,        -- ISO-8601 UTC; '' while unfinished
  checkpoint,         -- path
  checkpoint_digest,  -- sha256 of config, index and the shards' headers
  model_family,       -- model_type of the config
  policy,             -- who leaves memory
  budget_experts,     -- experts in memory at most
  budget_bytes,       -- bytes of experts in memory at most
  capture,            -- capture level
  config,             -- JSON, the resolved settings
  config_hash,        -- sha256 of what decides the results
  versions,           -- JSON, of the packages
  sequences,          -- texts observed to their end
  sequences_planned,  -- texts to observe; 0 if nobody knows
  tokens,             -- of all passes, without padding
  CASE WHEN predicted > 0 THEN nll_sum / predicted ELSE 0.0 END AS nll,  -- nats per predicted token
  hits,               -- experts found in memory, once per pass and expert
  misses,             -- experts not found in memory
  loads,              -- experts read from disk
  evictions,          -- experts that left memory
  bytes_read,         -- of experts, from disk
  parity,             -- equal, different or unchecked: the segmented model against the stock one
  events_seen,        -- events that the statistics rest on
  events_dropped,     -- events that they do not
  passes,             -- forward passes
  predicted,          -- tokens whose next-token NLL is known
  verdict,            -- JSON, the comparison with the stock model and its digests; {} if there was none
  drops,              -- JSON, dropped events by reason
  attempts            -- how often the job was started
FROM run""",
    "v_sequence": """
-- one text that was observed to its end
SELECT
  run_id,             -- of v_run
  ordinal,            -- place in the order of observing, from 0
  text_id,            -- of the corpus
  context,            -- label of the corpus
  tokens,             -- observed
  CASE WHEN predicted > 0 THEN nll_sum / predicted ELSE 0.0 END AS nll,  -- nats per predicted token
  text,               -- '' unless asked for
  predicted           -- tokens whose next-token NLL is known
FROM sequence""",
    "v_window": """
-- a score window: whole forward passes of one phase, about 4,096 tokens, more in a long run; both ends are in it
SELECT
  run_id,             -- of v_run
  window_index,       -- from 0; of merged windows that of the first
  first_step,         -- forward pass
  last_step,          -- of a long run's merged windows, passes of the other phase may lie between
  first_token,        -- of the run's tokens, from 0
  last_token,         -- likewise
  phase,              -- prefill or decode
  tokens,             -- without padding
  CASE WHEN predicted > 0 THEN nll_sum / predicted ELSE 0.0 END AS nll,  -- nats per predicted token
  wall_ns,            -- in forward passes
  hits,               -- experts found in memory, once per pass and expert
  misses,             -- experts not found in memory
  loads,              -- experts read from disk
  evictions,          -- experts that left memory
  bytes_read,         -- of experts, from disk
  passes,             -- forward passes
  predicted,          -- tokens whose next-token NLL is known
  last_window         -- of merged windows the index of the last, else its own
FROM score_window""",
    "v_expert": """
-- the experts of the run's checkpoint; layer and expert count from 0
SELECT
  run_id,             -- of v_run
  component,          -- thinker, talker or model
  layer,              -- from 0
  expert,             -- from 0
  bytes               -- of its parameters
FROM expert""",
    "v_expert_trust": """
-- trust and plain statistics as they stand; every expert and context has a row, also without uses
SELECT
  run_id,             -- of v_run
  component,          -- thinker, talker or model
  layer,              -- from 0
  expert,             -- from 0
  context,            -- label of the corpus, '*' = all
  trust,              -- 0..1, how far the expert can be relied on
  trust_low,          -- of its 90% interval
  trust_high,         -- of its 90% interval
  convergence,        -- 0..1, how much of the model's state is its doing
  stability,          -- 0..1, how alike its impact per use is from window to window
  efficiency,         -- 0..1, benefit per use and byte
  uses,               -- picks
  blocks,             -- of evidence, 256 tokens each
  definition_version, -- of trust
  load,               -- share of the layer's picks
  weight_mean,        -- routing weight per pick
  ean,                -- sum of |o| over its picks
  reap,               -- mean of w |o| over its picks
  impact_mean,        -- sum of impact per observed token of the layer
  block_mean,         -- mean over the blocks of its impact per token
  block_m2,           -- sum over the blocks of the squared deviation from it
  windows,            -- 32-token windows in which it was used enough to tell its stability
  window_cv           -- coefficient of variation of its impact per use over them
FROM expert_trust""",
    "v_expert_window": """
-- one expert in one score window, all contexts together; trust and its parts at its end, the rest of it alone
SELECT
  run_id,             -- of v_run
  window_index,       -- of v_window
  component,          -- thinker, talker or model
  layer,              -- from 0
  expert,             -- from 0
  trust,              -- at the window's end, as in v_expert_trust
  trust_low,          -- of its 90% interval
  trust_high,         -- of its 90% interval
  convergence,        -- at the window's end
  stability,          -- at the window's end
  efficiency,         -- at the window's end
  uses,               -- picks in the window
  blocks,             -- of evidence at the window's end
  load,               -- share of the layer's picks in the window
  weight_mean,        -- routing weight per pick in the window
  ean,                -- sum of |o| over its picks in the window
  reap,               -- mean of w |o| over its picks in the window
  impact_mean,        -- sum of impact per observed token of the layer in the window
  surprise,           -- 0..1, its share in the surprise of the window; 0 where it was not picked
  novelty,            -- 0..1, likewise
  arousal,            -- 0..1, likewise
  reward,             -- 0..1, likewise
  conflict,           -- 0..1, likewise
  hits,               -- found in memory, once per pass
  misses,             -- not found in memory
  evictions,          -- left memory
  block_mean,         -- mean over the blocks so far of its impact per token
  block_m2,           -- sum over the blocks so far of the squared deviation from it
  windows,            -- 32-token windows so far in which it was used enough to tell its stability
  window_cv           -- coefficient of variation of its impact per use over them
FROM expert_window""",
    "v_salience": """
-- 32 consecutive tokens of a sequence (fewer at its end) and how salient they were
SELECT
  run_id,             -- of v_run
  ordinal,            -- of v_sequence
  component,          -- thinker, talker or model
  position,           -- of its first token in the sequence, from 0
  tokens,             -- at most 32
  surprise,           -- 0..1, how far routing is from what it was of late
  novelty,            -- 0..1, how rarely its pairs of experts were picked together before
  arousal,            -- 0..1, how undecided the router was
  reward,             -- 0..1, how well the next tokens were predicted; 0.5 where they are not known
  conflict,           -- 0..1, how far the experts' contributions cancel
  salience,           -- mean of the five
  CASE WHEN predicted > 0 THEN nll_sum / predicted ELSE 0.0 END AS nll,  -- nats per predicted token
  predicted,          -- tokens whose next-token NLL is known
  definition_version, -- of salience
  text                -- '' unless asked for
FROM salience""",
    "v_residency_event": """
-- one load or eviction of an expert; those of a run's beginning, up to a cap (what is beyond it is in v_gap)
SELECT
  run_id,             -- of v_run
  event_index,        -- from 0, in their order
  step,               -- forward pass
  kind,               -- load or evict
  component,          -- thinker, talker or model
  layer,              -- from 0
  expert,             -- from 0
  reason,             -- of a load demand or prefetch, of an eviction capacity or layer (it was needed last)
  bytes,              -- of its parameters
  read_ns,            -- of a load: reading it took
  waited_ns,          -- of a load: the model stood still for
  idle_steps,         -- of an eviction: forward passes since its last use
  policy_score,       -- of an eviction: what the policy ranked it by, lowest first; 0 if it had no choice
  trust,              -- of an eviction: trust that the policy used; -1 if none
  next_use_step       -- of an eviction: when it was loaded again; -1 if not so far
FROM residency_event""",
    "v_coactivation": """
-- two experts that one token picked, in one layer or from one layer to the next
SELECT
  run_id,             -- of v_run
  component,          -- thinker, talker or model
  layer,              -- from 0
  expert,             -- from 0
  other_layer,        -- the same, or the next one that has experts
  other_expert,       -- in it; in the same layer always the greater number
  count,              -- tokens that picked both
  lift                -- against independent picks of both; 1 is chance
FROM coactivation""",
    "v_gap": """
-- what was not recorded
SELECT
  run_id,             -- of v_run
  reason,             -- why
  first_step,         -- forward pass
  last_step,          -- itself included
  count               -- events
FROM gap""",
    "v_validation": """
-- how well a statistic of the run foretold what removing an expert costs on other texts
SELECT
  run_id,             -- of v_run
  statistic,          -- trust, impact_mean, load and so on
  scope,              -- global, within layer, or a context's name
  rho,                -- Spearman's rank correlation with the cost of removal
  low,                -- of its 90% interval
  high,               -- of its 90% interval
  n,                  -- experts removed
  texts,              -- that the cost was measured on
  definition_version  -- of trust
FROM validation""",
    "v_trace": """
-- one Parquet file of the raw route trace, complete and on disk
SELECT
  run_id,             -- of v_run
  file_index,         -- from 0
  file,               -- name, in the run's trace folder beside the record
  first_step,         -- forward pass
  last_step,          -- itself included
  rows,               -- one a token and layer
  bytes,              -- of the file
  sha256              -- of the file
FROM trace_file""",
}

ADDED = {  # table -> column -> what it is in a record of before
    "run": {"passes": "0", "verdict": "'{}'", "attempts": "1"},
    "score_window": {"last_window": "0", "passes": "0"},
    "expert_trust": {"block_mean": "0", "block_m2": "0", "windows": "0", "window_cv": "0"},
}
TEXT = {"verdict"}
REAL = {"block_mean", "block_m2", "window_cv"}

TABLES = (
    "expert_window",
    "salience",
    "residency_event",
    "coactivation",
    "gap",
    "validation",
    "trace_file",
    "run_state",
)


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _integer(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.Integer, nullable=False) for name in names]


def _real(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.REAL, nullable=False) for name in names]


def _create(name: str, *columns: sa.Column[Any], key: int, rowid: bool = True) -> None:
    """Create a table of a run whose key is the run's and the first so many of its other columns."""
    link = sa.ForeignKey("run.run_id", name=f"fk_{name}_run_id_run")
    op.create_table(
        name,
        sa.Column("run_id", sa.Integer, link, nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("run_id", *(column.name for column in columns[:key]), name=f"pk_{name}"),
        sqlite_strict=True,
        sqlite_with_rowid=rowid,
    )


def upgrade() -> None:
    """Add columns and tables, and make the views anew."""
    _drop_views(_earlier_views())
    for table, columns in ADDED.items():
        for name, before in columns.items():
            kind: Any = sa.Text() if name in TEXT else sa.REAL() if name in REAL else sa.Integer()
            op.add_column(table, sa.Column(name, kind, nullable=False, server_default=sa.text(before)))
    op.execute(sa.text("UPDATE score_window SET last_window = window_index, passes = last_step - first_step + 1"))
    passes = "SELECT COALESCE(SUM(passes), 0) FROM score_window w WHERE w.run_id = run.run_id"
    op.execute(sa.text(f"UPDATE run SET passes = ({passes})"))
    scores: list[sa.Column[Any]] = []
    scores += _real("trust", "trust_low", "trust_high", "convergence", "stability", "efficiency")
    scores += [*_integer("uses", "blocks"), *_real("load", "weight_mean", "ean", "reap", "impact_mean")]
    scores += [*_real("block_mean", "block_m2"), *_integer("windows"), *_real("window_cv")]
    dimensions = ("surprise", "novelty", "arousal", "reward", "conflict")
    _create(
        "expert_window",
        *_integer("window_index"),
        *_text("component"),
        *_integer("layer", "expert"),
        *scores,
        *_real(*dimensions),
        *_integer("hits", "misses", "evictions"),
        key=4,
        rowid=False,
    )
    _create(
        "salience",
        *_integer("ordinal"),
        *_text("component"),
        *_integer("position", "tokens"),
        *_real(*dimensions, "salience", "nll_sum"),
        *_integer("predicted", "definition_version"),
        *_text("text"),
        key=3,
        rowid=False,
    )
    _create(
        "residency_event",
        *_integer("event_index", "step"),
        *_text("kind", "component"),
        *_integer("layer", "expert"),
        *_text("reason"),
        *_integer("bytes", "read_ns", "waited_ns", "idle_steps"),
        *_real("policy_score", "trust"),
        *_integer("next_use_step"),
        key=1,
        rowid=False,
    )
    _create(
        "coactivation",
        *_text("component"),
        *_integer("layer", "expert", "other_layer", "other_expert", "count"),
        *_real("lift"),
        key=5,
        rowid=False,
    )
    _create("gap", *_text("reason"), *_integer("first_step", "last_step", "count"), key=2)
    _create(
        "validation",
        *_text("statistic", "scope"),
        *_real("rho", "low", "high"),
        *_integer("n", "texts", "definition_version"),
        key=2,
    )
    _create(
        "trace_file",
        *_integer("file_index"),
        *_text("file"),
        *_integer("first_step", "last_step", "rows", "bytes"),
        *_text("sha256"),
        key=1,
    )
    _create("run_state", *_text("name"), sa.Column("content", sa.LargeBinary, nullable=False), key=1)
    _create_views(VIEWS)


def downgrade() -> None:
    """Drop what is new, and make the earlier views again."""
    _drop_views(VIEWS)
    for name in TABLES:
        op.drop_table(name)
    for table, columns in ADDED.items():
        for name in columns:
            op.drop_column(table, name)
    _create_views(_earlier_views())


def _earlier_views() -> dict[str, str]:
    script = op.get_context().script
    assert script is not None
    views: dict[str, str] = script.get_revision(down_revision).module.VIEWS
    return views


def _create_views(views: dict[str, str]) -> None:
    for name, query in views.items():
        op.execute(sa.text(f"CREATE VIEW {name} AS{query}".replace(":", r"\:")))


def _drop_views(views: dict[str, str]) -> None:
    for name in views:
        op.execute(sa.text(f"DROP VIEW {name}"))
