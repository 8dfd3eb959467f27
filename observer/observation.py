"""What a run has shown so far: evidence, score windows, texts and totals, from events. Threads are in collect.py.

Pure: takes no clock and no random numbers, so the same announcements and events give the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from observer.assembly import Assembly, LayerPicks, Stretch, texts_of, windows_of
from observer.detail import Detail, joined_salience
from observer.errors import GridError
from observer.gaps import Gaps
from observer.grid import Grid, grids
from observer.ledger import Ledger
from observer.residency import EVENTS_CAP, ResidencyLog
from observer.rows import CoactivationRows, ExpertWindowRows, SalienceRows
from observer.state import Arrays, below, counts_of, of_counts, under
from observer.stats import Picks
from observer.totals import ScoreTable, TextSeen, Totals, Window
from observer.trust import DEFAULTS, TrustSettings
from segmoe.events import Counted, Event, ExpertEvicted, ExpertKey, ExpertLoaded, Routed, StepDone

ALL = "*"
"""The context that stands for all contexts together; no corpus may use it."""

SCORE_WINDOW_TOKENS = 4096

MOST_WINDOWS = 1800
"""Of a run; at 48 layers x 128 experts a window takes 1.4 MB, so a record stays under 3 GB however long the run."""


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
        residency_cap: int = EVENTS_CAP,
    ) -> None:
        self.grids = grids(expert_bytes)
        self.contexts = sorted(set(contexts))
        self.ledgers = {(c, context): Ledger.zeros(self.grids[c]) for c in self.grids for context in self.contexts}
        self.settings, self.window_tokens = settings, window_tokens
        self.totals = Totals()
        self.passes = 0
        self.texts_total = 0
        self.gaps = Gaps()
        self.residency = ResidencyLog(expert_bytes, self.gaps, residency_cap)
        self.windows: list[Window] = []
        self.texts: list[TextSeen] = []
        self.not_evidence: dict[str, int] = {}  # Routed events that could not be used, whole or in part, by reason
        self._window: Window | None = None
        self._windows_total = 0
        self.expert_windows: list[ExpertWindowRows] = []
        self.details = {component: Detail(grid) for component, grid in self.grids.items()}
        self._assemblies = {component: Assembly() for component in self.grids}
        self._asked: list[tuple[str, int, NDArray[np.intp]]] = []  # what the passes under way asked for
        self._missed: list[ExpertKey] = []  # and what was loaded for them
        self._batch: list[TextSeen] = []
        self._ordinals: list[int] = []
        self._context = np.zeros(0, dtype=np.intp)  # [rows of the batch] index into `contexts`
        self._evidence = False

    def begin(self, texts: Sequence[TextRef], evidence: bool) -> None:
        """Announce the batch of the events that follow: its row r is texts[r].

        Without evidence (generated text) only residency counters and windows are kept.
        """
        self.end_batch()
        if evidence != self._evidence:
            self._end_window()
        self._evidence = evidence
        self._know(text.context for text in texts)
        self._context = np.array([self.contexts.index(text.context) for text in texts], dtype=np.intp)
        self._ordinals = [text.ordinal for text in texts]
        self._batch = [TextSeen(ordinal=text.ordinal) for text in texts] if evidence else []

    def end_batch(self) -> None:
        """Complete the texts of the batch: all of its events are here."""
        self._flush()
        done = [text for text in self._batch if text.tokens > 0]
        self.texts += done
        self.texts_total += len(done)
        self._batch = []

    def take(self, event: Event) -> None:
        """Take one event; loads and evictions are counted with the step they belong to."""
        if isinstance(event, Routed):
            self._routed(event)
        elif isinstance(event, Counted):
            self._counted(event)
        elif isinstance(event, StepDone):
            self._step_done(event)
        elif isinstance(event, (ExpertLoaded, ExpertEvicted)):
            self._moved(event)
        else:
            self.residency.take(event)

    def finish(self) -> None:
        """Complete what is open: the batch and the window."""
        self.end_batch()
        self._end_window()

    def state(self) -> Arrays:
        """Return all that later rows depend on; only between batches, and what is not yet taken away is not in it."""
        if self._batch:
            raise RuntimeError("a batch is open; end it first")
        arrays: Arrays = {
            "contexts": np.array(self.contexts, dtype=np.str_),
            "evidence": np.array(self._evidence),
            "passes": np.array(self.passes),
            "texts_total": np.array(self.texts_total),
            "windows_total": np.array(self._windows_total),
            **under("totals", _fields(self.totals)),
            **under("not_evidence", of_counts(self.not_evidence)),
            **under("gaps", self.gaps.state()),
            **under("residency", self.residency.state()),
        }
        if self._window is not None:
            arrays |= under("window", _fields(self._window))
        for (component, context), ledger in self.ledgers.items():
            for estimator, state in ledger.to_state().items():
                arrays |= under(f"ledger/{component}/{self.contexts.index(context)}/{estimator}", state)
        for component, detail in self.details.items():
            arrays |= under(f"detail/{component}", detail.state())
        return arrays

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from a state of the same experts."""
        contexts: list[str] = state["contexts"].tolist()
        self._know(contexts)
        self._evidence = bool(state["evidence"])
        self.passes = int(state["passes"])
        self.texts_total = int(state["texts_total"])
        self._windows_total = int(state["windows_total"])
        self.totals = Totals(**_numbers(below("totals", state)))
        self.not_evidence = counts_of(below("not_evidence", state))
        self.gaps.restore(below("gaps", state))
        self.residency.restore(below("residency", state))
        window = below("window", state)
        self._window = Window(**_numbers(window)) if window else None
        for component in self.grids:
            self.details[component].restore(below(f"detail/{component}", state))
            for number, context in enumerate(contexts):
                kept = below(f"ledger/{component}/{number}", state)
                estimators = dict.fromkeys(name.split("/")[0] for name in kept)
                self.ledgers[component, context] = Ledger.from_state({name: below(name, kept) for name in estimators})

    def tables(self, *, final: bool) -> tuple[ScoreTable, ...]:
        """Score every expert in every context and in all of them; at the end of a run its last rests count too."""
        result = []
        for component, grid in self.grids.items():
            for context in self.contexts:
                ledger = self.ledgers[component, context].closed(rest_counts=final)
                result.append(ScoreTable(component, grid.layers, context, ledger.scores(grid, self.settings)))
            everything = self.everything(component, final=final)
            result.append(ScoreTable(component, grid.layers, ALL, everything.scores(grid, self.settings)))
        return tuple(result)

    def everything(self, component: str, *, final: bool) -> Ledger:
        """Return the ledgers of all contexts as one."""
        both = Ledger.zeros(self.grids[component])
        for context in self.contexts:
            both.merge(self.ledgers[component, context].closed(rest_counts=final))
        return both

    def take_salience(self) -> tuple[SalienceRows, ...]:
        """Take away the salience of the windows that were scored since the last time."""
        found = []
        for detail in self.details.values():
            parts, detail.salience = detail.salience, []
            found.append(joined_salience(parts))
        return tuple(rows for rows in found if rows is not None)

    def pairs(self) -> tuple[CoactivationRows, ...]:
        """Tell the pairs of experts as they stand."""
        return tuple(detail.pairs() for detail in self.details.values())

    def _know(self, contexts: Iterable[str]) -> None:
        """Make room for contexts that are new."""
        new = set(contexts) - set(self.contexts)
        if new:
            self.contexts = sorted({*self.contexts, *new})
            added = {(c, context): Ledger.zeros(grid) for c, grid in self.grids.items() for context in new}
            order = [(component, context) for component in self.grids for context in self.contexts]
            self.ledgers = {key: self.ledgers.get(key) or added[key] for key in order}

    def _routed(self, event: Routed) -> None:
        self._grid(event.component, event.layer)
        experts = self.grids[event.component].experts
        asked = np.flatnonzero(np.bincount(event.topk_ids.ravel(), minlength=experts)[:experts])
        self._asked.append((event.component, event.layer, asked))
        if self._evidence:
            self._assemblies[event.component].routed(event)

    def _counted(self, event: Counted) -> None:
        """Take counts, which tell loads and weights only."""
        row = self._grid(event.component, event.layer).rows[event.layer]
        self._asked.append((event.component, event.layer, np.flatnonzero(event.uses.sum(axis=0))))
        if not self._evidence:
            return
        self._unused("no routing captured", [event.step])
        announced = min(len(event.uses), len(self._context))
        usages = [(self.details[event.component].usage, np.ones(announced, np.bool_))]
        for index in np.unique(self._context[:announced]):
            ledger = self.ledgers[event.component, self.contexts[index]]
            usages.append((ledger.usage, self._context[:announced] == index))
        for usage, mine in usages:
            usage.count(row, event.uses[:announced][mine].sum(axis=0), event.weights[:announced][mine].sum(axis=0))

    def _moved(self, event: ExpertLoaded | ExpertEvicted) -> None:
        self.residency.take(event)
        detail = self.details.get(event.key.component)
        if detail is None or event.key.layer not in detail.grid.layers:
            return
        if isinstance(event, ExpertEvicted):
            detail.evicted(event.key.layer, event.key.expert)
        else:  # also if it was prefetched: it was not in the budget
            self._missed.append(event.key)  # which window the pass belongs to is known when it is done

    def _learn(self, stretch: Stretch) -> None:
        """Make evidence of passes that were put together."""
        grid, detail = self.grids[stretch.component], self.details[stretch.component]
        before: LayerPicks | None = None
        for picks in stretch.layers:
            if not picks.is_contributing:
                self._unused("no contribution captured", stretch.steps)
            announced = picks.sequence < len(self._context)
            if not announced.all():
                self._unused("a row that was not announced", stretch.steps[:1])
            finite = picks.is_finite
            if not finite[announced].all():
                self._unused("not a finite number", stretch.steps[:1])
            rows = np.flatnonzero(announced & finite)
            row = grid.rows[picks.layer]
            follows = before is not None and grid.rows[before.layer] == row - 1 and before.has_rows_of(picks)
            detail.learn(_evidence(picks, row, rows, before if follows else None))
            context = self._context[picks.sequence[rows]]
            for index in np.unique(context):
                ledger = self.ledgers[stretch.component, self.contexts[index]]
                ledger.update(_evidence(picks, row, rows[context == index], None))
            before = picks
        detail.score(stretch, self._ordinals)

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
        if event.hits or event.misses:  # a model with all of its weights in memory has no cache to ask
            for component, layer, experts in self._asked:
                self.details[component].accessed(layer, experts)
        for key in self._missed:
            self.details[key.component].loaded(key.layer, key.expert)
        self._asked, self._missed = [], []
        if self._evidence and event.component in self._assemblies:
            for stretch in self._assemblies[event.component].step_done(event):
                self._learn(stretch)
        known = (event.position >= 0) & np.isfinite(event.nll)
        nll, row = event.nll[known].astype(np.float64), event.sequence[known]
        self._window.add(event, float(nll.sum()), len(nll))
        self._window.wall_ns += event.wall_ns
        self._window.passes += 1
        self.passes += 1
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
        self._flush()
        if self._window is not None and self._window.tokens > 0:
            for component, detail in self.details.items():
                scores = self.everything(component, final=False).scores(self.grids[component], self.settings)
                self.expert_windows.append(detail.end_window(self._window.window_index, scores))
            self.windows.append(self._window)
            self._windows_total += 1
        self._window = None

    def _flush(self) -> None:
        """Make evidence of decode passes that wait for more."""
        for assembly in self._assemblies.values():
            for stretch in assembly.flush():
                self._learn(stretch)

    def _grid(self, component: str, layer: int) -> Grid:
        grid = self.grids.get(component)
        if grid is None or layer not in grid.layers:
            raise GridError(f"an event came from {component} layer {layer}, which has no experts in the checkpoint")
        return grid

    def _unused(self, reason: str, steps: Sequence[int]) -> None:
        self.not_evidence[reason] = self.not_evidence.get(reason, 0) + len(steps)
        for step in steps:
            self.gaps.add(reason, step)


def _evidence(picks: LayerPicks, layer: int, rows: NDArray[np.intp], before: LayerPicks | None) -> Picks:
    """Some rows of a layer's picks as the estimators take them."""
    sequence, position = picks.sequence[rows], picks.position[rows]
    return Picks(
        layer=layer,
        ids=picks.ids[rows],
        weights=picks.weights[rows],
        c_norm=picks.c_norm[rows],
        impact=picks.impact[rows],
        window=windows_of(sequence, position),
        text=texts_of(sequence),
        before=None if before is None else before.ids[rows],
        is_contributing=picks.is_contributing,
    )


def _fields(counters: Totals) -> Arrays:
    return {field.name: np.array(getattr(counters, field.name)) for field in fields(counters)}


def _numbers(arrays: Arrays) -> dict[str, Any]:
    return {name: array.item() for name, array in arrays.items()}
