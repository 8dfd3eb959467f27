"""Where the record is, which views and columns pages may read, how each view changes. Reading is connection.py."""

from typing import Final, NamedTuple

RECORD_VARIABLE: Final = "SEGMOE_DASHBOARD_DB"
"""The environment variable that names the record's file to the pages."""


REVISION: Final = "0006"
"""The newest revision of the record that these pages understand."""


class View(NamedTuple):
    """One view of the record, as the mirror copies it."""

    columns: dict[str, str]
    """SQLite type by column name; each column is NOT NULL."""
    grows_by: str | None = None
    """Rows are added, and this column grows with them; only rows of its highest value may change. None: any may."""
    is_apart: bool = False
    """Rows may change while their run's row in v_run does not; there are few of them."""


def _columns(*, integer: str = "", real: str = "", text: str = "") -> dict[str, str]:
    kinds = {"INTEGER": integer, "REAL": real, "TEXT": text}
    return {column: kind for kind, columns in kinds.items() for column in columns.split()}


_SCORES = "trust trust_low trust_high convergence stability efficiency load weight_mean ean reap impact_mean"
_EVIDENCE = "block_mean block_m2 window_cv"
_DIMENSIONS = "surprise novelty arousal reward conflict"

VIEWS: Final[dict[str, View]] = {
    "v_run": View(
        _columns(
            integer="run_id sequences sequences_planned tokens hits misses loads evictions bytes_read"
            " budget_experts budget_bytes events_seen events_dropped passes predicted attempts"
            " queue_events queue_most queue_capacity waited_ns",
            real="nll",
            text="name status error started_at heartbeat_at finished_at checkpoint checkpoint_digest"
            " model_family policy capture config config_hash versions parity verdict drops",
        )
    ),
    "v_expert": View(_columns(integer="run_id layer expert bytes hits misses", text="component")),
    "v_expert_trust": View(
        _columns(
            integer="run_id layer expert uses blocks definition_version windows",
            real=f"{_SCORES} {_EVIDENCE}",
            text="component context",
        )
    ),
    "v_sequence": View(
        _columns(integer="run_id ordinal tokens predicted", real="nll", text="text_id context text"),
        grows_by="ordinal",
    ),
    "v_window": View(
        _columns(
            integer="run_id window_index first_step last_step first_token last_token tokens wall_ns"
            " hits misses loads evictions bytes_read passes predicted last_window",
            real="nll",
            text="phase",
        ),
        grows_by="window_index",
    ),
    "v_expert_window": View(
        _columns(
            integer="run_id window_index layer expert uses blocks hits misses evictions windows",
            real=f"{_SCORES} {_DIMENSIONS} {_EVIDENCE}",
            text="component",
        ),
        grows_by="window_index",
    ),
    "v_salience": View(
        _columns(
            integer="run_id ordinal position tokens predicted definition_version",
            real=f"{_DIMENSIONS} salience nll",
            text="component text",
        ),
        grows_by="ordinal",
    ),
    "v_residency_event": View(
        _columns(
            integer="run_id event_index step layer expert bytes read_ns waited_ns idle_steps next_use_step",
            real="policy_score trust",
            text="kind component reason",
        )
    ),
    "v_coactivation": View(
        _columns(integer="run_id layer expert other_layer other_expert count", real="lift", text="component")
    ),
    "v_gap": View(_columns(integer="run_id first_step last_step count", text="reason")),
    "v_validation": View(
        _columns(integer="run_id n texts definition_version", real="rho low high", text="statistic scope"),
        is_apart=True,
    ),
    "v_trace": View(_columns(integer="run_id file_index first_step last_step rows bytes", text="file sha256")),
    "v_what_if": View(
        _columns(
            integer="run_id budget_experts budget_bytes is_own accesses misses bytes_read evictions reloads_soon"
            " soon_tokens",
            real="miss_ratio miss_ratio_low miss_ratio_high read_ms bytes_per_s",
            text="phase policy",
        ),
        is_apart=True,
    ),
}

EXPERT_WINDOWS: Final = "v_expert_window"
"""The view of millions of rows, which the pages do not copy: expert_windows.py reads parts of it by their key."""
