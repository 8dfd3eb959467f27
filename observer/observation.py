"""What a run has shown so far: evidence, score windows, texts and totals, from events. Threads are in collect.py.

Pure: takes no clock and no random numbers, so the same announcements and events give the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from observer.errors import GridError
from observer.grid import Grid, grids
from observer.ledger import Ledger
from observer.stats import Picks
from observer.stats.windows import WINDOW_TOKENS
from observer.totals import ScoreTable, TextSeen, Totals, Window
from observer.trust import DEFAULTS, TrustSettings
from segmoe.events import Event, ExpertKey, Routed, StepDone

ALL = "*"
"""The context that stands for all contexts together; no corpus may use it."""

SCORE_WINDOW_TOKENS = 4096


class TextRef(NamedTuple):
    """One text of the corpus: its number from 0 and its label."""

    ordinal: int
    context: str


class Observation:
    """Takes announcements and events in their order.

    `windows` and `texts` hold what was completed and not yet taken away by the owner; `tables` tells how trust stands.
    """

    def __init__(
        self,
        expert_bytes: Mapping[ExpertKey, int],
        contexts: Iterable[str],
        *,
        settings: TrustSettings = DEFAULTS,
        window_tokens: int = SCORE_WINDOW_TOKENS,
    ) -> None:
        self.grids = grids(expert_bytes)
        self.contexts = sorted(set(contexts))
        self.ledgers = {(c, context): Ledger.zeros(self.grids[c]) for c in self.grids for context in self.contexts}
        self.settings, self.window_tokens = settings, window_tokens
        self.totals = Totals()
        self.windows: list[Window] = []
        self.texts: list[TextSeen] = []
        self.not_evidence: dict[str, int] = {}  # Routed events that could not be used, whole or in part, by reason
        self._window: Window | None = None
        self._windows_total = 0
        self._batch: list[TextSeen] = []
        self._context = np.zeros(0, dtype=np.intp)  # [rows of the batch] index into `contexts`
        self._evidence = False

    def begin(self, texts: Sequence[TextRef], evidence: bool) -> None:
        """Announce the batch of the events that follow: its row r is texts[r].

        Without evidence (generated text) only residency counters and windows are kept.
        """
        self._end_batch()
        if evidence != self._evidence:
            self._end_window()
        self._evidence = evidence
        self._context = np.array([self.contexts.index(text.context) for text in texts], dtype=np.intp)
        self._batch = [TextSeen(ordinal=text.ordinal) for text in texts] if evidence else []

    def take(self, event: Event) -> None:
        """Take one event; loads and evictions are counted with the step they belong to."""
        if isinstance(event, Routed):
            self._routed(event)
        elif isinstance(event, StepDone):
            self._step_done(event)

    def finish(self) -> None:
        """Complete what is open: the batch and the window."""
        self._end_batch()
        self._end_window()

    def tables(self, *, final: bool) -> tuple[ScoreTable, ...]:
        """Score every expert in every context and in all of them; at the end of a run its last rests count too."""
        result = []
        for component, grid in self.grids.items():
            both = Ledger.zeros(grid)
            for context in self.contexts:
                ledger = self.ledgers[component, context].closed(rest_counts=final)
                result.append(ScoreTable(component, grid.layers, context, ledger.scores(grid, self.settings)))
                both.merge(ledger)
            result.append(ScoreTable(component, grid.layers, ALL, both.scores(grid, self.settings)))
        return tuple(result)

    def _routed(self, event: Routed) -> None:
        grid = self._grid(event.component, event.layer)
        if not self._evidence:
            return
        if event.contribution is None:
            self._unused("no contribution captured")
            return
        weights = event.topk_weights.astype(np.float64)
        c_norm = event.contribution.c_norm.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is sorted out here
            impact = event.contribution.impact()
            finite: NDArray[np.bool_] = np.isfinite((weights + c_norm + impact).sum(axis=1))
        token = event.position >= 0
        if not finite[token].all():
            self._unused("not a finite number")
        rows = np.flatnonzero(token & finite)
        rows = rows[np.lexsort((event.position[rows], event.sequence[rows]))]
        context = self._context[event.sequence[rows]]
        for index in np.unique(context):
            mine = rows[context == index]
            window = np.stack((event.sequence[mine], event.position[mine] // WINDOW_TOKENS), axis=1)
            starts = np.any(window[1:] != window[:-1], axis=1)
            picks = Picks(
                layer=grid.rows[event.layer],
                ids=event.topk_ids[mine].astype(np.intp),
                weights=weights[mine],
                c_norm=c_norm[mine],
                impact=impact[mine],
                window=np.concatenate(([0], np.cumsum(starts))).astype(np.intp),
            )
            self.ledgers[event.component, self.contexts[index]].update(picks)

    def _step_done(self, event: StepDone) -> None:
        if self._window is not None and self._window.phase != event.phase:
            self._end_window()
        if self._window is None:
            self._window = Window(
                window_index=self._windows_total,
                first_step=event.step,
                last_step=event.step,
                first_token=self.totals.tokens,
                phase=event.phase,
            )
        known = (event.position >= 0) & np.isfinite(event.nll)
        nll, row = event.nll[known].astype(np.float64), event.sequence[known]
        self._window.add(event, float(nll.sum()), len(nll))
        self._window.wall_ns += event.wall_ns
        self._window.last_step = event.step
        counts = self._evidence
        self.totals.add(event, float(nll.sum()) if counts else 0.0, len(nll) if counts else 0)
        rows = len(self._batch)
        seen = np.bincount(event.sequence[event.position >= 0], minlength=rows)
        sums, predicted = np.bincount(row, nll, minlength=rows), np.bincount(row, minlength=rows)
        for index, text in enumerate(self._batch):
            text.tokens += int(seen[index])
            text.nll_sum += float(sums[index])
            text.predicted += int(predicted[index])
        if self._window.tokens >= self.window_tokens:
            self._end_window()

    def _end_window(self) -> None:
        if self._window is not None and self._window.tokens > 0:
            self.windows.append(self._window)
            self._windows_total += 1
        self._window = None

    def _end_batch(self) -> None:
        self.texts += [text for text in self._batch if text.tokens > 0]
        self._batch = []

    def _grid(self, component: str, layer: int) -> Grid:
        grid = self.grids.get(component)
        if grid is None or layer not in grid.layers:
            raise GridError(f"an event came from {component} layer {layer}, which has no experts in the checkpoint")
        return grid

    def _unused(self, reason: str) -> None:
        self.not_evidence[reason] = self.not_evidence.get(reason, 0) + 1
