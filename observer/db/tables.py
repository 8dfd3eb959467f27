"""The tables of the record as the writer uses them; they may change. The promise to readers is migrations' v_* views.

Times are ISO-8601 UTC text, durations integer nanoseconds. Every column is NOT NULL: readers infer types from values.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import REAL, Column, ForeignKey, Integer, MetaData, PrimaryKeyConstraint, Table, Text, UniqueConstraint

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _table(name: str, *parts: Any, comment: str) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True, comment=comment)


def _text(name: str, comment: str) -> Column[str]:
    return Column(name, Text, nullable=False, comment=comment)


def _integer(name: str, comment: str) -> Column[int]:
    return Column(name, Integer, nullable=False, comment=comment)


def _real(name: str, comment: str) -> Column[float]:
    return Column(name, REAL, nullable=False, comment=comment)


def _run_id() -> Column[int]:
    return Column("run_id", Integer, ForeignKey("run.run_id"), nullable=False)


def _counters() -> list[Column[Any]]:
    """Columns that are the fields of observer.totals.Totals."""
    return [
        _integer("tokens", "without padding"),
        _real("nll_sum", "nats over the predicted tokens"),
        _integer("predicted", "tokens whose next-token NLL is known"),
        _integer("hits", "experts found in memory"),
        _integer("misses", "experts not found in memory"),
        _integer("loads", "experts read from disk"),
        _integer("evictions", "experts that left memory"),
        _integer("bytes_read", "of experts, from disk"),
    ]


run = _table(
    "run",
    Column("run_id", Integer, primary_key=True),
    _text("name", "unique"),
    _text("status", "started, done, cancelled or error"),
    _text("error", "one line; '' if none"),
    _text("started_at", "ISO-8601 UTC"),
    _text("heartbeat_at", "ISO-8601 UTC, of the last transaction"),
    _text("finished_at", "ISO-8601 UTC; '' while unfinished"),
    _text("checkpoint", "path"),
    _text("checkpoint_digest", "of config, index and headers"),
    _text("model_family", "model_type of the config"),
    _text("policy", "who leaves memory"),
    _integer("budget_experts", "experts in memory at most"),
    _integer("budget_bytes", "of experts in memory at most"),
    _text("capture", "capture level"),
    _text("config", "JSON of the resolved settings"),
    _text("config_hash", "sha256 of what decides the results"),
    _text("versions", "JSON"),
    _integer("sequences", "texts finished"),
    _integer("sequences_planned", "texts to do"),
    *_counters(),
    _text("parity", "equal, different or unchecked"),
    _text("parity_lines", "JSON list: what was compared"),
    _integer("events_seen", "that the statistics rest on"),
    _integer("events_dropped", "that they do not"),
    _text("drops", "JSON: dropped events by reason"),
    UniqueConstraint("name"),
    comment="One observation run; its counters are over all of its passes, its NLL over the texts of the corpus.",
)

sequence = _table(
    "sequence",
    _run_id(),
    _integer("ordinal", "place in the corpus, from 0"),
    _text("text_id", "of the corpus"),
    _text("context", "label of the corpus"),
    _integer("tokens", "observed"),
    _real("nll_sum", "nats over the predicted tokens"),
    _integer("predicted", "tokens whose next-token NLL is known"),
    _text("text", "'' unless asked for"),
    PrimaryKeyConstraint("run_id", "ordinal"),
    comment="One text that was observed to its end.",
)

window = _table(
    "score_window",
    _run_id(),
    _integer("window_index", "from 0"),
    _integer("first_step", "forward pass"),
    _integer("last_step", "itself included"),
    _integer("first_token", "of the run's tokens, from 0"),
    _integer("last_token", "itself included"),
    _text("phase", "prefill or decode"),
    *_counters(),
    _integer("wall_ns", "in forward passes"),
    PrimaryKeyConstraint("run_id", "window_index"),
    comment="A score window: whole forward passes of one phase, about 4,096 tokens.",
)

expert = _table(
    "expert",
    _run_id(),
    _text("component", "thinker, talker or model"),
    _integer("layer", "from 0"),
    _integer("expert", "from 0"),
    _integer("bytes", "of its parameters"),
    PrimaryKeyConstraint("run_id", "component", "layer", "expert"),
    comment="The experts of the run's checkpoint.",
)

SCORES = (
    "trust",
    "trust_low",
    "trust_high",
    "convergence",
    "stability",
    "efficiency",
    "uses",
    "blocks",
    "load",
    "weight_mean",
    "ean",
    "reap",
    "impact_mean",
)
"""The fields of observer.ledger.Scores, in their order."""

expert_trust = _table(
    "expert_trust",
    _run_id(),
    _text("component", "thinker, talker or model"),
    _integer("layer", "from 0"),
    _integer("expert", "from 0"),
    _text("context", "label of the corpus, or * for all"),
    _real("trust", "0..1: 0.7 convergence + 0.1 stability + 0.2 efficiency"),
    _real("trust_low", "of the 90% interval"),
    _real("trust_high", "of the 90% interval"),
    _real("convergence", "0..1: how much of the layer's result is its doing, against the layer's median"),
    _real("stability", "0..1: how alike its impact per use is from window to window"),
    _real("efficiency", "0..1: benefit per use and byte, against the layer's median"),
    _integer("uses", "picks"),
    _integer("blocks", "of evidence, 128 tokens each"),
    _real("load", "share of the layer's picks"),
    _real("weight_mean", "routing weight per pick"),
    _real("ean", "sum of |o| over its picks"),
    _real("reap", "mean of w |o| over its picks"),
    _real("impact_mean", "sum of impact per observed token of the layer"),
    _integer("definition_version", "of observer.trust"),
    PrimaryKeyConstraint("run_id", "component", "layer", "expert", "context"),
    comment="Trust and plain statistics as they stand, for every expert and context of the run.",
)
