"""The tables of the record as the writer uses them; they may change. The promise to readers is migrations' v_* views.

Times are ISO-8601 UTC text, durations integer nanoseconds. Every column is NOT NULL: readers infer types from values.
The key of a table is its only index: each further one costs as much as the insert. Tables with many rows keep no rowid,
so that their key is stored once. The module is long because it is a list.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    REAL,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _table(name: str, *parts: Any, comment: str, rowid: bool = True) -> Table:
    return Table(name, metadata, *parts, sqlite_strict=True, sqlite_with_rowid=rowid, comment=comment)


def _text(name: str, comment: str) -> Column[str]:
    return Column(name, Text, nullable=False, comment=comment)


def _integer(name: str, comment: str) -> Column[int]:
    return Column(name, Integer, nullable=False, comment=comment)


def _count(name: str, comment: str) -> Column[int]:
    """A counter that came to the table when it had rows."""
    return Column(name, Integer, nullable=False, server_default="0", comment=comment)


def _real(name: str, comment: str) -> Column[float]:
    return Column(name, REAL, nullable=False, comment=comment)


def _run_id() -> Column[int]:
    return Column("run_id", Integer, ForeignKey("run.run_id"), nullable=False)


def _expert_key() -> list[Column[Any]]:
    return [
        _text("component", "thinker, talker or model"),
        _integer("layer", "from 0"),
        _integer("expert", "from 0"),
    ]


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
    _integer("sequences_planned", "texts to do; 0 if nobody knows"),
    *_counters(),
    _integer("passes", "forward passes"),
    _text("parity", "equal, different or unchecked"),
    _text("parity_lines", "JSON list: what was compared"),
    _text("verdict", "JSON: the comparison with its digests; {} if there was none"),
    _integer("events_seen", "that the statistics rest on"),
    _integer("events_dropped", "that they do not"),
    _text("drops", "JSON: dropped events by reason"),
    _integer("attempts", "how often the job was started"),
    _count("queue_events", "events that waited for the observer at the heartbeat"),
    _count("queue_most", "that ever waited since the job was last started"),
    _count("queue_capacity", "that can wait; 0 if nobody told"),
    _count("waited_ns", "that the model stood still since then because the queue was full"),
    UniqueConstraint("name"),
    comment="One observation run; its counters are over all of its passes, its NLL over the texts of the corpus.",
)

sequence = _table(
    "sequence",
    _run_id(),
    _integer("ordinal", "place in the order of observing, from 0"),
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
    _integer("window_index", "from 0; of merged windows that of the first"),
    _integer("last_window", "of merged windows the index of the last, else its own"),
    _integer("first_step", "forward pass"),
    _integer("last_step", "itself included"),
    _integer("first_token", "of the run's tokens, from 0"),
    _integer("last_token", "itself included"),
    _text("phase", "prefill or decode"),
    _integer("passes", "forward passes"),
    *_counters(),
    _integer("wall_ns", "in forward passes"),
    PrimaryKeyConstraint("run_id", "window_index"),
    comment="A score window: whole forward passes of one phase, from about 4,096 tokens; longer in a long run.",
)

expert = _table(
    "expert",
    _run_id(),
    *_expert_key(),
    _integer("bytes", "of its parameters"),
    _count("hits", "found in memory, of all score windows"),
    _count("misses", "not found in memory"),
    PrimaryKeyConstraint("run_id", "component", "layer", "expert"),
    comment="The experts of the run's checkpoint, and how often a pass wanted each.",
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
    "block_mean",
    "block_m2",
    "windows",
    "window_cv",
)
"""The fields of observer.ledger.Scores, in their order."""


def _scores() -> list[Column[Any]]:
    return [
        _real("trust", "0..1; since version 2 convergence, before 0.7 of it + 0.1 stability + 0.2 efficiency"),
        _real("trust_low", "of the 90% interval"),
        _real("trust_high", "of the 90% interval"),
        _real("convergence", "0..1: how much of the model's state is its doing, against the model's median"),
        _real("stability", "0..1: how alike its impact per use is from window to window"),
        _real("efficiency", "0..1: benefit per use and byte, against the layer's median"),
        _integer("uses", "picks"),
        _integer("blocks", "of evidence, 256 tokens each"),
        _real("load", "share of the layer's picks"),
        _real("weight_mean", "routing weight per pick"),
        _real("ean", "sum of |o| over its picks"),
        _real("reap", "mean of w |o| over its picks"),
        _real("impact_mean", "sum of impact per observed token of the layer"),
        _real("block_mean", "mean over the blocks of its impact per token"),
        _real("block_m2", "sum over the blocks of the squared deviation from it"),
        _integer("windows", "32-token windows in which it was used enough to tell its stability"),
        _real("window_cv", "coefficient of variation of its impact per use over them"),
    ]


expert_trust = _table(
    "expert_trust",
    _run_id(),
    *_expert_key(),
    _text("context", "label of the corpus, or * for all"),
    *_scores(),
    _integer("definition_version", "of observer.trust"),
    PrimaryKeyConstraint("run_id", "component", "layer", "expert", "context"),
    comment="Trust and plain statistics as they stand, for every expert and context of the run.",
)

expert_window = _table(
    "expert_window",
    _run_id(),
    _integer("window_index", "of score_window"),
    *_expert_key(),
    *_scores(),
    _real("surprise", "0..1, of its picks in the window"),
    _real("novelty", "0..1, likewise"),
    _real("arousal", "0..1, likewise"),
    _real("reward", "0..1, likewise"),
    _real("conflict", "0..1, likewise"),
    _integer("hits", "found in memory"),
    _integer("misses", "not found in memory"),
    _integer("evictions", "left memory"),
    PrimaryKeyConstraint("run_id", "window_index", "component", "layer", "expert"),
    rowid=False,
    comment="One expert in one score window: trust and its parts as they stood at its end, the rest of it alone.",
)

SALIENCE = ("surprise", "novelty", "arousal", "reward", "conflict")
"""The dimensions of salience, in their order."""

salience = _table(
    "salience",
    _run_id(),
    _integer("ordinal", "of sequence"),
    _text("component", "thinker, talker or model"),
    _integer("position", "of its first token in the sequence, from 0"),
    _integer("tokens", "at most 32"),
    *(_real(name, "0..1") for name in SALIENCE),
    _real("salience", "mean of the five"),
    _real("nll_sum", "nats over the predicted tokens"),
    _integer("predicted", "tokens whose next-token NLL is known"),
    _integer("definition_version", "of observer.salience"),
    _text("text", "'' unless asked for"),
    PrimaryKeyConstraint("run_id", "ordinal", "component", "position"),
    rowid=False,
    comment="How salient 32 consecutive tokens of a sequence were.",
)

residency_event = _table(
    "residency_event",
    _run_id(),
    _integer("event_index", "from 0, in the order of events"),
    _integer("step", "forward pass"),
    _text("kind", "load, evict, or waste: read early and never asked for"),
    *_expert_key(),
    _text("reason", "demand or prefetch; capacity or layer"),
    _integer("bytes", "of its parameters"),
    _integer("read_ns", "of a load or a waste"),
    _integer("waited_ns", "that the model stood still for a load"),
    _integer("idle_steps", "of an eviction: forward passes since its last use"),
    _real("policy_score", "of an eviction: what the policy ranked it by; the lowest leaves"),
    _real("trust", "of an eviction: what the policy used; -1 if it used none"),
    _integer("next_use_step", "of an eviction: when it was loaded again; -1 if it was not"),
    PrimaryKeyConstraint("run_id", "event_index"),
    rowid=False,
    comment="One load, eviction or wasted read of an expert; the first ones of a run, up to a cap.",
)

coactivation = _table(
    "coactivation",
    _run_id(),
    *_expert_key(),
    _integer("other_layer", "the same layer, or the next one that has experts"),
    _integer("other_expert", "in it; greater than expert in the same layer"),
    _integer("count", "tokens that picked both"),
    _real("lift", "against what independent picks of both would give; 1 is chance"),
    PrimaryKeyConstraint("run_id", "component", "layer", "expert", "other_layer", "other_expert"),
    rowid=False,
    comment="Two experts that one token picked, in one layer or from one layer to the next.",
)

gap = _table(
    "gap",
    _run_id(),
    _text("reason", "why it was not recorded"),
    _integer("first_step", "forward pass"),
    _integer("last_step", "itself included"),
    _integer("count", "events"),
    PrimaryKeyConstraint("run_id", "reason", "first_step"),
    comment="Events that were not recorded.",
)

validation = _table(
    "validation",
    _run_id(),
    _text("statistic", "what was to foretell the cost of removing an expert"),
    _text("scope", "global, within layer, or the name of a context"),
    _real("rho", "Spearman's, with the cost of removal"),
    _real("low", "of the 90% interval"),
    _real("high", "of the 90% interval"),
    _integer("n", "experts removed"),
    _integer("texts", "that the cost was measured on"),
    _integer("definition_version", "of observer.trust"),
    PrimaryKeyConstraint("run_id", "statistic", "scope"),
    comment="How well a statistic of the run foretold what removing an expert costs on other texts.",
)

trace_file = _table(
    "trace_file",
    _run_id(),
    _integer("file_index", "from 0"),
    _text("file", "name in the trace folder of the run"),
    _integer("first_step", "forward pass"),
    _integer("last_step", "itself included"),
    _integer("rows", "one a token and layer"),
    _integer("bytes", "of the file"),
    _text("sha256", "of the file"),
    PrimaryKeyConstraint("run_id", "file_index"),
    comment="One Parquet file of the raw route trace.",
)

what_if = _table(
    "what_if",
    _run_id(),
    _text("phase", "all, prefill or decode: whose accesses are counted"),
    _text("policy", "who leaves memory, or belady"),
    _integer("budget_experts", "experts in memory at most"),
    _integer("budget_bytes", "of experts in memory at most"),
    _integer("is_own", "1: the policy and the budget that the run had"),
    _integer("accesses", "of the trace"),
    _integer("misses", "of these"),
    _real("miss_ratio_low", "of the 90% interval"),
    _real("miss_ratio_high", "of the 90% interval"),
    _integer("bytes_read", "of experts, from disk"),
    _integer("evictions", "experts that left memory"),
    _integer("reloads_soon", "of these, back within soon_tokens"),
    _integer("soon_tokens", "tokens that are soon"),
    _real("bytes_per_s", "of the disk; one for all rows of a run"),
    PrimaryKeyConstraint("run_id", "phase", "policy", "budget_experts"),
    rowid=False,
    comment="What a policy with a budget would have cost on the run's trace.",
)

run_state = _table(
    "run_state",
    _run_id(),
    _text("name", "what it is the state of"),
    Column("content", LargeBinary, nullable=False, comment="arrays, as numpy.savez writes them"),
    PrimaryKeyConstraint("run_id", "name"),
    comment="What a run needs to go on where it stopped; of no use to readers.",
)
