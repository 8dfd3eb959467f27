"""What the record takes beside windows, texts and trust: a type for each table of detail. Writing them is db/writer.py.

Fields are named as the columns that they fill. Arrays of a type have one shape; everything is finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from observer.ledger import Scores
from observer.stats import Array

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWindowRows:
    """Every expert of a component in one score window, all contexts together; arrays are [layer, expert].

    Of the scores, trust with its interval, its parts and its evidence (`blocks`, `block_mean`, `block_m2`, `windows`,
    `window_cv`) are as they stand at the window's end; `uses` and the plain statistics are of the window alone, and so
    is everything else.
    """

    window_index: int
    component: str
    layers: tuple[int, ...]  # layer number of each row
    scores: Scores
    surprise: Array  # 0..1; 0 where the expert was not picked
    novelty: Array
    arousal: Array
    reward: Array
    conflict: Array
    hits: Integers
    misses: Integers
    evictions: Integers


@dataclass(frozen=True, slots=True, kw_only=True)
class SalienceRows:
    """Windows of at most 32 consecutive tokens of sequences; arrays are [window]."""

    component: str
    ordinal: Integers  # of the sequence
    position: Integers  # of the first token in it
    tokens: Integers
    surprise: Array  # 0..1
    novelty: Array
    arousal: Array
    reward: Array
    conflict: Array
    salience: Array  # mean of the five
    nll_sum: Array  # nats over the predicted tokens
    predicted: Integers
    definition_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CoactivationRows:
    """Pairs of experts as they stand, instead of all earlier ones of the component; arrays are [pair]."""

    component: str
    layer: Integers
    expert: Integers
    other_layer: Integers  # the same layer, or the next one that has experts
    other_expert: Integers  # in the same layer greater than `expert`
    count: Integers  # tokens that picked both
    lift: Array  # 1 is chance


class GapRow(NamedTuple):
    """Events that were not recorded; a later one of the same reason and first step replaces it."""

    reason: str
    first_step: int
    last_step: int
    events: int  # the column `count`


class ResidencyRow(NamedTuple):
    """One load, eviction or wasted read."""

    event_index: int
    step: int
    kind: Literal["load", "evict", "waste"]
    component: str
    layer: int
    expert: int
    reason: str
    bytes: int
    read_ns: int = 0
    waited_ns: int = 0
    idle_steps: int = 0
    policy_score: float = 0.0
    trust: float = -1.0
    next_use_step: int = -1


class NextUse(NamedTuple):
    """The expert that left with this event was loaded again at this step."""

    event_index: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRow:
    """How well a statistic foretold the cost of removing an expert."""

    statistic: str
    scope: str  # global, within layer, or a context
    rho: float
    low: float
    high: float
    n: int  # experts
    texts: int
    definition_version: int


class WhatIfRow(NamedTuple):
    """What a policy with a budget would have cost; the names are columns."""

    phase: str  # all, prefill or decode
    policy: str
    budget_experts: int
    budget_bytes: int
    is_own: int  # 1 if it is what the run had
    accesses: int  # more than 0
    misses: int
    miss_ratio_low: float
    miss_ratio_high: float
    bytes_read: int
    evictions: int
    reloads_soon: int
    soon_tokens: int


class TraceFile(NamedTuple):
    """A Parquet file of the route trace that is complete and on disk."""

    file_index: int
    file: str
    first_step: int
    last_step: int
    rows: int
    bytes: int
    sha256: str
