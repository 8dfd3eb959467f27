"""Reads that were wasted, in the words of the view: the table takes them as it is.

Revision ID: 0006
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str = "0005"

VIEW = """
-- one {events} of an expert; those of a run's beginning, up to a cap (what is beyond it is in v_gap)
SELECT
  run_id,             -- of v_run
  event_index,        -- from 0, in their order
  step,               -- forward pass
  kind,               -- {kind}
  component,          -- thinker, talker or model
  layer,              -- from 0
  expert,             -- from 0
  reason,             -- of a load demand or prefetch{prefetch}, of an eviction capacity or layer (it was needed last)
  bytes,              -- of its parameters
  read_ns,            -- of a load{waste}: reading it took
  waited_ns,          -- of a load: the model stood still for
  idle_steps,         -- of an eviction: forward passes since its last use
  policy_score,       -- of an eviction: what the policy ranked it by, lowest first; 0 if it had no choice
  trust,              -- of an eviction: trust that the policy used; -1 if none
  next_use_step       -- of an eviction: when it was loaded again; -1 if not so far
FROM residency_event"""

WORDS = {
    "events": "load, eviction or wasted read",
    "kind": "load, evict, or waste: read early, beside the budget, and never asked for",
    "prefetch": " (read before its layer asked; a miss all the same)",
    "waste": " or a waste",
}
EARLIER = {"events": "load or eviction", "kind": "load or evict", "prefetch": "", "waste": ""}


def upgrade() -> None:
    """Show the same columns, with what they now hold."""
    _show(WORDS)


def downgrade() -> None:
    """Show them as before."""
    _show(EARLIER)


def _show(words: dict[str, str]) -> None:
    op.execute(sa.text("DROP VIEW v_residency_event"))
    op.execute(sa.text(f"CREATE VIEW v_residency_event AS{VIEW.format(**words)}".replace(":", r"\:")))
