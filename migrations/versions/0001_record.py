"""The record: runs, texts, score windows, experts, trust; and the views that readers rely on.

Revision ID: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None

VIEWS = {
    "v_run": """
-- one observation run; counters over all of its passes, NLL over the texts of the corpus
SELECT run_id, name,
  status,             -- started, done, cancelled, error
  error,              -- '' if none
  started_at, heartbeat_at,
  finished_at,        -- '' while unfinished
  checkpoint, checkpoint_digest, model_family, policy,
  budget_experts, budget_bytes, capture,
  config, config_hash, versions,  -- JSON, sha256, JSON
  sequences, sequences_planned, tokens,
  CASE WHEN predicted > 0 THEN nll_sum / predicted ELSE 0.0 END AS nll,  -- nats per predicted token
  hits, misses, loads, evictions, bytes_read,
  parity,             -- equal, different, unchecked
  events_seen, events_dropped
FROM run""",
    "v_sequence": """
-- one text that was observed to its end
SELECT run_id, ordinal, text_id, context, tokens,
  CASE WHEN predicted > 0 THEN nll_sum / predicted ELSE 0.0 END AS nll,  -- nats per predicted token
  text                -- '' unless asked for
FROM sequence""",
    "v_window": """
-- a score window: whole forward passes of one phase, about 4,096 tokens; both ends are in it
SELECT run_id, window_index, first_step, last_step, first_token, last_token, phase, tokens,
  CASE WHEN predicted > 0 THEN nll_sum / predicted ELSE 0.0 END AS nll,  -- nats per predicted token
  wall_ns, hits, misses, loads, evictions, bytes_read
FROM score_window""",
    "v_expert": """
-- the experts of the run's checkpoint; layer and expert count from 0
SELECT run_id, component, layer, expert, bytes
FROM expert""",
    "v_expert_trust": """
-- trust and plain statistics as they stand; every expert and context has a row, also without uses
SELECT run_id, component, layer, expert,
  context,            -- label of the corpus, '*' = all
  trust, trust_low, trust_high,        -- 0..1 and its 90% interval
  convergence, stability, efficiency,  -- its parts, 0..1
  uses, blocks,       -- its evidence
  definition_version,
  load,               -- share of the layer's picks
  weight_mean,        -- routing weight per pick
  ean,                -- sum of |o|
  reap,               -- mean of w |o| over its picks
  impact_mean         -- sum of impact per observed token of the layer
FROM expert_trust""",
}


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _integer(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.Integer, nullable=False) for name in names]


def _real(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.REAL, nullable=False) for name in names]


def _run_id(table: str) -> sa.Column[int]:
    link = sa.ForeignKey("run.run_id", name=f"fk_{table}_run_id_run")
    return sa.Column("run_id", sa.Integer, link, nullable=False)


def upgrade() -> None:
    """Create the tables, then the views."""
    op.create_table(
        "run",
        sa.Column("run_id", sa.Integer, nullable=False),
        *_text("name", "status", "error", "started_at", "heartbeat_at", "finished_at"),
        *_text("checkpoint", "checkpoint_digest", "model_family", "policy"),
        *_integer("budget_experts", "budget_bytes"),
        *_text("capture", "config", "config_hash", "versions"),
        *_integer("sequences", "sequences_planned", "tokens"),
        *_real("nll_sum"),
        *_integer("predicted", "hits", "misses", "loads", "evictions", "bytes_read"),
        *_text("parity", "parity_lines"),
        *_integer("events_seen", "events_dropped"),
        *_text("drops"),
        sa.PrimaryKeyConstraint("run_id", name="pk_run"),
        sa.UniqueConstraint("name", name="uq_run_name"),
        sqlite_strict=True,
    )
    op.create_table(
        "sequence",
        _run_id("sequence"),
        *_integer("ordinal"),
        *_text("text_id", "context"),
        *_integer("tokens"),
        *_real("nll_sum"),
        *_integer("predicted"),
        *_text("text"),
        sa.PrimaryKeyConstraint("run_id", "ordinal", name="pk_sequence"),
        sqlite_strict=True,
    )
    op.create_table(
        "score_window",
        _run_id("score_window"),
        *_integer("window_index", "first_step", "last_step", "first_token", "last_token"),
        *_text("phase"),
        *_integer("tokens"),
        *_real("nll_sum"),
        *_integer("predicted", "hits", "misses", "loads", "evictions", "bytes_read", "wall_ns"),
        sa.PrimaryKeyConstraint("run_id", "window_index", name="pk_score_window"),
        sqlite_strict=True,
    )
    op.create_table(
        "expert",
        _run_id("expert"),
        *_text("component"),
        *_integer("layer", "expert", "bytes"),
        sa.PrimaryKeyConstraint("run_id", "component", "layer", "expert", name="pk_expert"),
        sqlite_strict=True,
    )
    op.create_table(
        "expert_trust",
        _run_id("expert_trust"),
        *_text("component"),
        *_integer("layer", "expert"),
        *_text("context"),
        *_real("trust", "trust_low", "trust_high", "convergence", "stability", "efficiency"),
        *_integer("uses", "blocks"),
        *_real("load", "weight_mean", "ean", "reap", "impact_mean"),
        *_integer("definition_version"),
        sa.PrimaryKeyConstraint("run_id", "component", "layer", "expert", "context", name="pk_expert_trust"),
        sqlite_strict=True,
    )
    for name, query in VIEWS.items():
        op.execute(sa.text(f"CREATE VIEW {name} AS{query}".replace(":", r"\:")))


def downgrade() -> None:
    """Drop the views, then the tables."""
    for name in VIEWS:
        op.execute(sa.text(f"DROP VIEW {name}"))
    for name in ("expert_trust", "expert", "score_window", "sequence", "run"):
        op.drop_table(name)
