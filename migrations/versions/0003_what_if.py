"""What if: what every policy would have cost at every budget, from a replay of the run's trace.

Revision ID: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str = "0002"

VIEW = """
-- what a policy with a budget would have cost on the run's trace; made by `observer plan` and `observer replay`
SELECT
  run_id,             -- of v_run
  phase,              -- all, prefill or decode: the passes counted, of one replay of all passes
  policy,             -- who leaves memory; belady, who knows the future, is the floor
  budget_experts,     -- experts in memory at most
  budget_bytes,       -- bytes of experts in memory at most; of a budget in experts, of so many of the largest
  is_own,             -- 1: the policy and the budget that the run had
  accesses,           -- once per pass and expert; below the run's hits + misses if its trace is a part of it
  misses,             -- experts not found in memory
  misses * 1.0 / accesses AS miss_ratio,  -- 0..1
  miss_ratio_low,     -- of its 90% interval, from blocks of the trace
  miss_ratio_high,    -- of its 90% interval
  bytes_read,         -- of experts, from disk
  bytes_read * 1e3 / bytes_per_s AS read_ms,  -- estimate: all reads one after the other, at bytes_per_s
  bytes_per_s,        -- of the disk, as the run measured it or as given; one for all rows of a run
  evictions,          -- experts that left memory
  reloads_soon,       -- evictions whose expert was needed again within soon_tokens
  soon_tokens         -- tokens that are soon
FROM what_if"""


def upgrade() -> None:
    """Create the table and its view."""
    op.create_table(
        "what_if",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("run.run_id", name="fk_what_if_run_id_run"), nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("phase", "policy")),
        *_integer("budget_experts", "budget_bytes", "is_own", "accesses", "misses"),
        *_real("miss_ratio_low", "miss_ratio_high"),
        *_integer("bytes_read", "evictions", "reloads_soon", "soon_tokens"),
        *_real("bytes_per_s"),
        sa.PrimaryKeyConstraint("run_id", "phase", "policy", "budget_experts", name="pk_what_if"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.execute(sa.text(f"CREATE VIEW v_what_if AS{VIEW}".replace(":", r"\:")))


def downgrade() -> None:
    """Drop both."""
    op.execute(sa.text("DROP VIEW v_what_if"))
    op.drop_table("what_if")


def _integer(*names: str) -> list[sa.Column[int]]:
    return [sa.Column(name, sa.Integer, nullable=False) for name in names]


def _real(*names: str) -> list[sa.Column[float]]:
    return [sa.Column(name, sa.REAL, nullable=False) for name in names]
