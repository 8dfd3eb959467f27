"""What pages ask of the record, one function per file in sql/. Drawing the answers is charts/, phrasing words.py."""

from dashboard.queries.base import ALL_CONTEXTS, Run
from dashboard.queries.experts import (
    contexts,
    expert,
    expert_difference,
    expert_history,
    expert_map,
    expert_map_at,
    layers,
    neighbours,
    residencies,
)
from dashboard.queries.quality import coverage, gaps, pace, trace, validation
from dashboard.queries.residency import (
    RESIDENCY_STRIP_CAP,
    expert_residency,
    reasons,
    regret,
    residency_by_step,
    trust_of_evicted,
)
from dashboard.queries.runs import difference, runs, sparklines, windows
from dashboard.queries.salience import after, moments, salience_stream
from dashboard.queries.what_if import what_if, what_if_at_own, what_if_phases, what_if_policies

__all__ = [
    "ALL_CONTEXTS",
    "RESIDENCY_STRIP_CAP",
    "Run",
    "after",
    "contexts",
    "coverage",
    "difference",
    "expert",
    "expert_difference",
    "expert_history",
    "expert_map",
    "expert_map_at",
    "expert_residency",
    "gaps",
    "layers",
    "moments",
    "neighbours",
    "pace",
    "reasons",
    "regret",
    "residencies",
    "residency_by_step",
    "runs",
    "salience_stream",
    "sparklines",
    "trace",
    "trust_of_evicted",
    "validation",
    "what_if",
    "what_if_at_own",
    "what_if_phases",
    "what_if_policies",
    "windows",
]
