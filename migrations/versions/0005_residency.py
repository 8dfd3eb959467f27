"""How often each expert was wanted and in memory over the whole run, so that nobody adds up its score windows.

Revision ID: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str = "0004"

COLUMNS = ("hits", "misses")

EXPERT = """
-- the experts of the run's checkpoint, and how often a pass wanted each; layer and expert count from 0
SELECT
  run_id,             -- of v_run
  component,          -- thinker, talker or model
  layer,              -- from 0
  expert,             -- from 0
  bytes,              -- of its parameters
  hits,               -- found in memory, once per pass; of all score windows
  misses              -- not found in memory
FROM expert"""

EARLIER = """
-- the experts of the run's checkpoint; layer and expert count from 0
SELECT
  run_id,             -- of v_run
  component,          -- thinker, talker or model
  layer,              -- from 0
  expert,             -- from 0
  bytes               -- of its parameters
FROM expert"""

FILL = """
UPDATE expert AS e SET hits = w.hits, misses = w.misses
FROM (
  SELECT run_id, component, layer, expert, SUM(hits) AS hits, SUM(misses) AS misses
  FROM expert_window GROUP BY run_id, component, layer, expert
) AS w
WHERE w.run_id = e.run_id AND w.component = e.component AND w.layer = e.layer AND w.expert = e.expert"""


def upgrade() -> None:
    """Add the columns, fill them with what the score windows say, and show them."""
    for name in COLUMNS:
        op.add_column("expert", sa.Column(name, sa.Integer, nullable=False, server_default="0"))
    op.execute(sa.text(FILL))
    _show(EXPERT)


def downgrade() -> None:
    """Take them away."""
    _show(EARLIER)
    for name in COLUMNS:
        op.drop_column("expert", name)


def _show(view: str) -> None:
    op.execute(sa.text("DROP VIEW v_expert"))
    op.execute(sa.text(f"CREATE VIEW v_expert AS{view}"))
