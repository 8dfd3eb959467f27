"""Where the record is, which views and columns pages may read, how each view changes. Reading is connection.py."""

from typing import Final, NamedTuple

RECORD_VARIABLE: Final = "SEGMOE_DASHBOARD_DB"
"""The environment variable that names the record's file to the pages."""


class View(NamedTuple):
    """One view of the record, as the mirror copies it."""

    columns: dict[str, str]
    """SQLite type by column name; each column is NOT NULL."""
    grows_by: str | None = None
    """Rows are only ever added, and this column grows with them; None: rows of a run may change."""


def _columns(*, integer: str = "", real: str = "", text: str = "") -> dict[str, str]:
    kinds = {"INTEGER": integer, "REAL": real, "TEXT": text}
    return {column: kind for kind, columns in kinds.items() for column in columns.split()}


VIEWS: Final[dict[str, View]] = {
    "v_run": View(
        _columns(
            integer="run_id sequences sequences_planned tokens hits misses loads evictions bytes_read"
            " budget_experts budget_bytes events_seen events_dropped",
            real="nll",
            text="name status error started_at heartbeat_at finished_at checkpoint checkpoint_digest"
            " model_family policy capture config config_hash versions parity",
        )
    ),
    "v_expert": View(_columns(integer="run_id layer expert bytes", text="component")),
    "v_expert_trust": View(
        _columns(
            integer="run_id layer expert uses blocks definition_version",
            real="trust trust_low trust_high convergence stability efficiency load weight_mean ean reap impact_mean",
            text="component context",
        )
    ),
    "v_sequence": View(
        _columns(integer="run_id ordinal tokens", real="nll", text="text_id context text"), grows_by="ordinal"
    ),
    "v_window": View(
        _columns(
            integer="run_id window_index first_step last_step first_token last_token tokens wall_ns"
            " hits misses loads evictions bytes_read",
            real="nll",
            text="phase",
        ),
        grows_by="window_index",
    ),
}
