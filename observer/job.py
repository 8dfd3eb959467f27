"""One observation job: texts through a segmented model, events into the record. Wiring only; what counts is elsewhere.

Statuses: started, then done, cancelled (a signal) or error. A killed job stays `started` with an old heartbeat.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Engine

from observer.collect import Collector
from observer.corpus import Text, read_corpus
from observer.db.session import open_db, reading
from observer.db.writer import RunStart, TextLabels, Writer
from observer.errors import CollectorError, DatabaseError, ObserverError, RunNameTaken
from observer.observation import Observation, TextRef
from observer.progress import JobProgress
from observer.settings import JobConfig, config_hash, versions
from observer.signals import StopRequest, stop_on_signals
from observer.totals import Snapshot
from segmoe.events import ExpertKey

if TYPE_CHECKING:
    import torch

HEARTBEAT_S = 5.0
EXPERTS_SHARE = 4
"""Without a budget, one in so many experts may be in memory."""

__all__ = ["JobConfig", "JobResult", "run_job"]


class JobResult(NamedTuple):
    """How a job ended."""

    run: str  # name
    status: str  # done or cancelled


class _Entry(NamedTuple):
    ref: TextRef
    text: Text


def run_job(config: JobConfig, progress: JobProgress) -> JobResult:
    """Observe the model on the corpus; raise SegmoeError or ObserverError for what is expected to fail."""
    import segmoe
    from segmoe.building import read_config
    from segmoe.checkpoint import open_checkpoint
    from segmoe.manifest import build_manifest

    texts = read_corpus(config.corpus, config.limit)
    engine = open_db(config.db)
    name = _choose_name(engine, config.run)
    checkpoint = open_checkpoint(config.model)
    manifest = build_manifest(checkpoint, read_config(checkpoint.folder))
    manifest.require_complete()
    expert_bytes = {key: segment.nbytes for key, segment in manifest.experts.items()}
    experts = config.experts
    if experts is None and config.budget is None:
        experts = max(1, len(expert_bytes) // EXPERTS_SHARE)
    budget: dict[str, Any] = {"experts": experts, "budget": config.budget, "policy": config.policy}
    tokenizer = _tokenizer(checkpoint.folder)
    parity, lines = "unchecked", ["not compared with the stock model (--no-verify)"]
    if config.verify:
        progress.say("comparing with the stock model")
        verdict = segmoe.verify(config.model, **budget)
        parity, lines = "equal" if verdict.equal else "different", verdict.lines
    writer = Writer(engine, [TextLabels(t.id, t.context, t.text if config.keep_text else "") for t in texts])
    observation = Observation(expert_bytes, (text.context for text in texts))
    collector = Collector(observation, writer.record)
    try:
        model = segmoe.load(config.model, sink=collector, capture="contribution", **budget)
        resolved = config.resolved(experts=experts, corpus_sha256=_sha256(texts))
        capacity = _capacity(model.segmoe.cache, expert_bytes)
        start = RunStart(
            name=name,
            checkpoint=str(checkpoint.folder),
            checkpoint_digest=manifest.digest,
            model_family=manifest.family,
            policy=config.policy,
            budget_experts=capacity[0],
            budget_bytes=capacity[1],
            capture="contribution",
            config=json.dumps(resolved, sort_keys=True),
            config_hash=config_hash(resolved, manifest.digest),
            versions=json.dumps(versions(), sort_keys=True),
            sequences_planned=len(texts),
            parity=parity,
            parity_lines=json.dumps(lines),
        )
        writer.start(start, expert_bytes)
        writer.record(_nothing_yet(observation))
        status = _observe(config, model, tokenizer, texts, collector, writer, progress)
        model.segmoe.close()
    finally:
        with contextlib.suppress(CollectorError):  # where it matters, _observe told it
            collector.close()
        engine.dispose()
    return JobResult(name, status)


def _observe(
    config: JobConfig,
    model: Any,
    tokenizer: Any,
    texts: Sequence[Text],
    collector: Collector,
    writer: Writer,
    progress: JobProgress,
) -> str:
    """Run the texts and close the run in the record, whatever happens."""
    status, error = "done", ""
    try:
        with progress, stop_on_signals(progress.say) as stop:
            loop = _Loop(config, model, tokenizer, collector, progress, stop)
            loop.score(texts)
            if config.generate:
                loop.generate(texts[: config.generate_texts])
            if stop.is_set:
                status = "cancelled"
        collector.close()
        if model.segmoe.sink_failures_total:
            raise ObserverError(f"the sink raised {model.segmoe.sink_failures_total} times; the record is incomplete")
    except KeyboardInterrupt:
        status = "cancelled"
    except BaseException as raised:
        status, error = "error", " ".join(str(raised).split()) or type(raised).__name__
        raise
    finally:
        with contextlib.suppress(CollectorError):
            collector.close()
        with contextlib.suppress(DatabaseError):  # if the record is what failed, it cannot be told there
            writer.drops({**collector.drops, **collector.observation.not_evidence})
            writer.finish(status, error)
    return status


class _Loop:
    """Batches of texts through the model."""

    def __init__(
        self,
        config: JobConfig,
        model: Any,
        tokenizer: Any,
        collector: Collector,
        progress: JobProgress,
        stop: StopRequest,
    ) -> None:
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._collector, self._progress, self._stop = collector, progress, stop
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._pad = 0 if pad is None else int(pad)

    def score(self, texts: Sequence[Text]) -> None:
        """One forward pass per batch; every token is evidence."""
        import torch

        with torch.inference_mode():
            for batch in self._batches("observing", texts, self._config.batch, evidence=True):
                ids, mask = self._encode(batch, self._config.max_tokens, left=False)
                self._model(input_ids=ids, attention_mask=mask, use_cache=False)

    def generate(self, texts: Sequence[Text]) -> None:
        """Continue the beginning of each text greedily, one at a time as a person would; it is no evidence."""
        import torch

        with torch.inference_mode():
            for batch in self._batches("generating", texts, 1, evidence=False):
                ids, mask = self._encode(batch, self._config.generate_prompt_tokens, left=True)
                self._model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=self._config.generate,
                    do_sample=False,
                    pad_token_id=self._pad,
                    stopping_criteria=[self._stop_early],
                )

    def _batches(self, phase: str, texts: Sequence[Text], size: int, *, evidence: bool) -> Iterator[Sequence[_Entry]]:
        """Announce each batch to the collector; stop when asked to, or when nobody listens any more."""
        self._progress.begin(phase, len(texts), self._collector.totals)
        beat_s = time.monotonic()
        entries = [_Entry(TextRef(ordinal, text.context), text) for ordinal, text in enumerate(texts)]
        for first in range(0, len(entries), size):
            if self._stop.is_set or self._collector.failure is not None:
                return
            batch = entries[first : first + size]
            self._collector.begin([entry.ref for entry in batch], evidence)
            yield batch
            if time.monotonic() - beat_s >= HEARTBEAT_S:
                beat_s = time.monotonic()
                self._collector.flush(record=True)
            self._progress.advance(len(batch), self._collector.totals, self._collector.events_dropped_total)

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

    def _stop_early(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        return torch.full((len(ids),), self._stop.is_set, dtype=torch.bool, device=ids.device)


def _choose_name(engine: Engine, wanted: str | None) -> str:
    """Return the wanted name if it is free, else one made from the time."""
    with reading(engine).begin() as connection:
        taken = {str(row[0]) for row in connection.exec_driver_sql("SELECT name FROM run")}
    if wanted is not None:
        if wanted in taken:
            raise RunNameTaken(wanted)
        return wanted
    base = datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S")
    return next(name for name in (base, *(f"{base}-{n}" for n in range(2, 1000))) if name not in taken)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        first_line = str(error).strip().split("\n")[0]
        raise ObserverError(f"{folder} has no tokenizer that can be read ({first_line})") from None


def _capacity(cache: Any, expert_bytes: Mapping[ExpertKey, int]) -> tuple[int, int]:
    """Return the budget in experts and in bytes, each from the other where only one was given."""
    largest = max(expert_bytes.values())
    experts, capacity = cache.capacity_experts, cache.capacity_bytes
    if experts is None:
        experts = len(expert_bytes) if capacity is None else min(len(expert_bytes), capacity // largest)
    return experts, experts * largest if capacity is None else capacity


def _nothing_yet(observation: Observation) -> Snapshot:
    """Return what trust is before any evidence, so that readers find a row for every expert from the start."""
    tables = observation.tables(final=False)
    return Snapshot(windows=(), texts=(), tables=tables, totals=observation.totals, events_seen=0, drops={})


def _sha256(texts: Sequence[Text]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode())
    return digest.hexdigest()
