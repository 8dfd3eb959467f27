"""What a segmented model tells: one object per (step, module), carrying arrays. No torch, no statistics here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Capture = Literal["off", "counts", "routing", "contribution"]
CAPTURES: tuple[Capture, ...] = ("off", "counts", "routing", "contribution")
Phase = Literal["prefill", "decode"]

logger = logging.getLogger(__name__)


class ExpertKey(NamedTuple):
    """Name of an expert; layer and expert count from zero."""

    component: str
    layer: int
    expert: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What each pick did to the residual stream.

    o is an expert's output for a token, w its routing weight, c = w o, and h the output of the decoder layer
    (shared experts and residual included).
    """

    c_norm: NDArray[np.float32]  # [rows, k] |c|
    h_dot_c: NDArray[np.float32]  # [rows, k] h.c
    h_norm: NDArray[np.float32]  # [rows] |h|
    sum_unit_norm: NDArray[np.float32]  # [rows] |sum over k of c / |c||; c / |c| is 0 where c is

    def __getitem__(self, rows: slice) -> Contribution:
        """Some of its rows, without a copy."""
        return Contribution(
            c_norm=self.c_norm[rows],
            h_dot_c=self.h_dot_c[rows],
            h_norm=self.h_norm[rows],
            sum_unit_norm=self.sum_unit_norm[rows],
        )

    def impact(self) -> NDArray[np.float64]:
        """1 - cos(h, h - c) of each pick, shape [rows, k], in 0..2.

        Taken through the sine, sin^2 / (1 + cos), because 1 - cos loses its digits where c is small.

        >>> one = np.ones((1, 1), np.float32)
        >>> right_angle = Contribution(c_norm=one, h_dot_c=0 * one, h_norm=one[0], sum_unit_norm=one[0])
        >>> round(float(right_angle.impact()[0, 0]), 4)  # h = (1, 0), c = (0, 1): an angle of 45 degrees
        0.2929
        """
        h = self.h_norm.astype(np.float64)[:, None]
        c, dot = self.c_norm.astype(np.float64), self.h_dot_c.astype(np.float64)
        rest = np.sqrt(np.maximum(h * h - 2 * dot + c * c, 1e-30))
        scale = np.maximum(h * rest, 1e-30)
        cosine = np.clip((h * h - dot) / scale, -1.0, 1.0)
        sine_squared = np.maximum(h * h * c * c - dot * dot, 0.0) / (scale * scale)
        return np.where(cosine > 0, sine_squared / (1 + np.maximum(cosine, 0.0)), 1 - cosine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """Router picks of one layer in one forward pass. Rows are tokens; padding has position -1 and is no evidence."""

    step: int
    component: str
    layer: int
    phase: Phase
    topk_ids: NDArray[np.int16]  # [rows, k]
    topk_weights: NDArray[np.float32]  # [rows, k]
    sequence: NDArray[np.int32]  # [rows] row of the batch
    position: NDArray[np.int32]  # [rows] in its sequence, from 0; -1 is padding
    contribution: Contribution | None = None  # at capture level "contribution"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """How often each sequence picked each expert of one layer in one forward pass, without padding.

    What capture level "counts" tells instead of Routed.
    """

    step: int
    component: str
    layer: int
    phase: Phase
    uses: NDArray[np.int32]  # [sequences, experts]
    weights: NDArray[np.float32]  # [sequences, experts] sum of routing weights


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLoaded:
    """An expert was read from disk into memory."""

    step: int
    key: ExpertKey
    cause: Literal["demand", "prefetch"]
    """A layer asked for it; or it was read because one was likely to, and then one did."""
    bytes: int
    read_ns: int
    waited_ns: int
    """How long the model stood still for it; equal to `read_ns` when nothing overlapped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWasted:
    """An expert was read early and never asked for: neither loaded nor evicted, it was in no budget."""

    step: int  # when it was given up
    key: ExpertKey
    bytes: int  # of its parameters; where it was given up within, fewer were read, as the step's bytes_read tells
    read_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertEvicted:
    """An expert left memory."""

    step: int
    key: ExpertKey
    reason: Literal["capacity", "layer"]
    """The budget was full and the policy chose; or nothing was left but what the layer itself still needed."""
    idle_steps: int  # forward passes since its last use
    policy_score: float  # what the policy ranked it by; the lowest leaves; 0 if the policy had no choice
    trust: float | None  # the trust that the policy used, if it used any
    next_candidate: ExpertKey | None  # who would have left instead


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """One forward pass of a component is over. The last event of its step."""

    step: int
    component: str
    phase: Phase
    tokens: int  # without padding
    sequences: int
    sequence: NDArray[np.int32]  # [rows] row of the batch
    position: NDArray[np.int32]  # [rows] -1 is padding
    nll: NDArray[np.float32]  # [rows] of the next token in nats, NaN where the pass does not hold it
    entropy: NDArray[np.float32]  # [rows] of the next-token distribution in nats, NaN likewise
    wall_ns: int
    hits: int
    misses: int
    loads: int
    evictions: int
    bytes_read: int


Event: TypeAlias = Routed | Counted | ExpertLoaded | ExpertWasted | ExpertEvicted | StepDone


class EventSink(Protocol):
    """Whoever wants to know."""

    def emit(self, event: Event, /) -> None:
        """Take the event and return at once. Must neither raise nor change the arrays."""


class NullSink:
    """Takes everything and keeps nothing."""

    def emit(self, event: Event, /) -> None:
        """Do nothing."""


class GuardedSink:
    """Stands between a model and a sink: what the sink raises is counted and told once, never passed on."""

    def __init__(self, sink: EventSink) -> None:
        self.sink = sink
        self.failures_total = 0

    def emit(self, event: Event, /) -> None:
        """Pass the event on; swallow and count any exception."""
        try:
            self.sink.emit(event)
        except Exception:
            self.failures_total += 1
            if self.failures_total == 1:
                logger.warning("an event sink failed; the model goes on without it", exc_info=True)
