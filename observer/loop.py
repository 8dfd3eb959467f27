"""Batches of texts through the model, from any place between two of them. What is made of the events is collect.py."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from observer.collect import Collector
from observer.corpus import Text
from observer.observation import TextRef
from observer.order import Order
from observer.progress import JobProgress
from observer.settings import JobConfig, parse_duration
from observer.signals import StopRequest
from observer.state import Arrays, below, under

if TYPE_CHECKING:
    import torch

CHECKPOINT_S = 60.0
"""At most so much work is lost in a crash, or one batch if that takes longer."""


@dataclass(slots=True)
class Place:
    """What is done; all counters of the job itself."""

    scored: int = 0  # texts
    generated: int = 0  # texts
    tokens: int = 0  # of scored texts, without padding

    def arrays(self) -> Arrays:
        """Return it for the state."""
        return {name: np.array(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Place:
        """Return it from the state."""
        return cls(**{name: int(arrays[name]) for name in cls.__slots__})


class _Entry(NamedTuple):
    ref: TextRef
    text: Text


class Loop:
    """Scores texts, then continues some of them; stops between two batches when asked to or when a limit is reached."""

    def __init__(
        self,
        config: JobConfig,
        model: Any,
        tokenizer: Any,
        order: Order,
        collector: Collector,
        progress: JobProgress,
        stop: StopRequest,
    ) -> None:
        self._config, self._model, self._tokenizer, self._order = config, model, tokenizer, order
        self._collector, self._progress, self._stop = collector, progress, stop
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad = 0 if pad is None else int(pad)
        self._done = Place()
        self._began_s = self._saved_s = time.monotonic()
        self._limit_s = None if config.time_limit is None else parse_duration(config.time_limit)

    def go_on(self, place: Mapping[str, NDArray[Any]]) -> None:
        """Start where another process stopped."""
        from segmoe.residency import restore_residency

        restore_residency(self._model.segmoe, below("residency", place))
        self._done = Place.of(place)

    def place(self) -> Arrays:
        """Return where the job is, between two batches."""
        from segmoe.residency import residency_state

        return {**self._done.arrays(), **under("residency", residency_state(self._model.segmoe))}

    @property
    def is_out_of_time(self) -> bool:
        """Whether the time of this start is over."""
        return self._limit_s is not None and time.monotonic() - self._began_s >= self._limit_s

    def score(self) -> None:
        """One forward pass per batch; every token is evidence."""
        import torch

        config, done, planned = self._config, self._done, self._order.planned
        self._progress.begin("observing", planned, self._collector.totals, done.scored)
        while not planned or done.scored < planned:
            if self._must_stop() or (config.total_tokens is not None and done.tokens >= config.total_tokens):
                return
            last = done.scored + config.batch
            ordinals = range(done.scored, min(last, planned) if planned else last)
            batch = self._announce(ordinals, evidence=True)
            ids, mask = self._encode(batch, config.max_tokens, left=False)
            with torch.inference_mode():
                self._model(input_ids=ids, attention_mask=mask, use_cache=False)
            done.scored += len(batch)
            done.tokens += int(mask.sum())
            self._batch_done(len(batch), is_last=done.scored == planned)

    def generate(self) -> None:
        """Continue the beginning of each text greedily, one at a time as a person would; it is no evidence."""
        import torch

        config, done = self._config, self._done
        texts = min(config.generate_texts, done.scored)
        if not config.generate or done.generated >= texts or self._must_stop():
            return
        self._progress.begin("generating", texts, self._collector.totals, done.generated)
        while done.generated < texts and not self._must_stop():
            batch = self._announce(range(done.generated, done.generated + 1), evidence=False)
            ids, mask = self._encode(batch, config.generate_prompt_tokens, left=True)
            with torch.inference_mode():
                self._model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=config.generate,
                    do_sample=False,
                    pad_token_id=self._pad,
                )
            done.generated += 1
            self._batch_done(1, is_last=done.generated == texts)

    def _must_stop(self) -> bool:
        """Whether to stop here: asked to, out of time, or nobody listens any more."""
        return self._stop.is_set or self.is_out_of_time or self._collector.failure is not None

    def _announce(self, ordinals: Sequence[int], *, evidence: bool) -> list[_Entry]:
        texts = [self._order[ordinal] for ordinal in ordinals]
        entries = [_Entry(TextRef(o, text.context), text) for o, text in zip(ordinals, texts, strict=True)]
        self._collector.begin([entry.ref for entry in entries], evidence, self.place())
        return entries

    def _batch_done(self, texts: int, *, is_last: bool) -> None:
        if is_last:
            self._collector.flush()  # so that the last line of progress tells all
        if time.monotonic() - self._saved_s >= CHECKPOINT_S:
            self._saved_s = time.monotonic()
            self._collector.flush(record=True, place=self.place())
        self._progress.advance(texts, self._collector.totals, self._collector.events_dropped_total)

    def _encode(self, batch: Sequence[_Entry], tokens: int, *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and attention mask [texts, tokens], padded on one side; works without a padding token too."""
        import torch

        rows = self._tokenizer([entry.text.text for entry in batch], truncation=True, max_length=tokens)["input_ids"]
        width = max(1, *(len(row) for row in rows))
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            ids[index, place] = torch.tensor(row, dtype=torch.long)
            mask[index, place] = 1
        return ids, mask
