"""How full the queue between model and observer was, in the header of a run.

Revision ID: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str = "0003"

COLUMNS = ("queue_events", "queue_most", "queue_capacity", "waited_ns")

RUN = """
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
  attempts,           -- how often the job was started
  queue_events,       -- events that waited for the observer at the heartbeat
  queue_most,         -- events that ever waited at once, since the job was last started
  queue_capacity,     -- events that can wait; 0 in runs of before this was told
  waited_ns           -- that the model stood still since then because the queue was full
FROM run"""


def upgrade() -> None:
    """Add the columns and show them."""
    for name in COLUMNS:
        op.add_column("run", sa.Column(name, sa.Integer, nullable=False, server_default="0"))
    _show(RUN)


def downgrade() -> None:
    """Take them away."""
    shown = RUN
    for name in COLUMNS:
        begin = shown.index(f"  {name}")
        shown = shown[:begin] + shown[shown.index("\n", begin) + 1 :]
    _show(shown.replace("attempts,  ", "attempts   "))
    for name in COLUMNS:
        op.drop_column("run", name)


def _show(view: str) -> None:
    op.execute(sa.text("DROP VIEW v_run"))
    op.execute(sa.text(f"CREATE VIEW v_run AS{view}".replace(":", r"\:")))
