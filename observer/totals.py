"""What is counted over steps, score windows and texts. Whose experts they used is ledger.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from observer.ledger import Scores
from observer.rows import (
    CoactivationRows,
    ExpertWindowRows,
    GapRow,
    NextUse,
    ResidencyRow,
    SalienceRows,
    TraceFile,
)
from observer.state import Arrays
from segmoe.events import Phase, StepDone


@dataclass(slots=True, kw_only=True)
class Totals:
    """Counters that only grow."""

    tokens: int = 0
    nll_sum: float = 0.0  # nats
    predicted: int = 0  # tokens that nll_sum is about
    hits: int = 0
    misses: int = 0
    loads: int = 0
    evictions: int = 0
    bytes_read: int = 0

    def add(self, step: StepDone, nll_sum: float, predicted: int) -> None:
        """Add the counters of a step and the NLL that counts here."""
        self.tokens += step.tokens
        self.nll_sum += nll_sum
        self.predicted += predicted
        self.hits += step.hits
        self.misses += step.misses
        self.loads += step.loads
        self.evictions += step.evictions
        self.bytes_read += step.bytes_read


@dataclass(slots=True, kw_only=True)
class Window(Totals):
    """A score window: whole steps of one phase, about 4,096 tokens."""

    window_index: int  # from 0
    first_step: int
    last_step: int
    first_token: int
    phase: Phase
    passes: int = 0
    wall_ns: int = 0

    @property
    def last_window(self) -> int:
        """The last of the windows that this one was merged from; a new one is itself."""
        return self.window_index

    @property
    def last_token(self) -> int:
        """The last token in the window, itself included."""
        return self.first_token + self.tokens - 1


@dataclass(slots=True, kw_only=True)
class TextSeen:
    """What became of one text."""

    ordinal: int
    tokens: int = 0
    nll_sum: float = 0.0
    predicted: int = 0


class ScoreTable(NamedTuple):
    """The scores of one component in one context."""

    component: str
    layers: tuple[int, ...]  # layer number of each row
    context: str
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is new since the last snapshot (windows, texts, rows) and how things stand (totals, tables, state)."""

    windows: tuple[Window, ...]
    texts: tuple[TextSeen, ...]
    tables: tuple[ScoreTable, ...]  # empty if no window is new
    totals: Totals
    events_seen: int
    drops: dict[str, int]  # events that were not recorded, by reason
    passes: int = 0
    expert_windows: tuple[ExpertWindowRows, ...] = ()
    salience: tuple[SalienceRows, ...] = ()
    coactivation: tuple[CoactivationRows, ...] = ()  # as it stands; a component that is left out keeps its rows
    gaps: tuple[GapRow, ...] = ()
    residency: tuple[ResidencyRow, ...] = ()
    next_uses: tuple[NextUse, ...] = ()
    trace_files: tuple[TraceFile, ...] = ()
    state: Arrays | None = None  # to go on from here; None leaves the last one
    is_final: bool = False  # its windows may be cut short: whoever goes on from the state makes them anew


class QueueState(NamedTuple):
    """How the observer keeps up, since it was started."""

    queue_events: int  # that wait now
    queue_most: int  # that ever waited
    queue_capacity: int
    waited_ns: int  # that the model stood still for a place
