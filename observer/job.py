"""One observation job: corpus, model, collector and record put together. What counts is elsewhere.

Statuses: started, then done, cancelled (a signal) or error. A killed job stays `started` with an old heartbeat. The
same job with the same name goes on where the last one stopped, whatever stopped it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, RowMapping

from observer.collect import Collector
from observer.corpus import Text, read_corpus
from observer.db.session import open_db
from observer.db.writer import RunStart, Writer
from observer.errors import CollectorError, DatabaseError, ObserverError, RunDiffers
from observer.heartbeat import beating
from observer.loop import Loop
from observer.observation import Observation
from observer.order import LabelsOf, Order, Passages
from observer.progress import JobProgress
from observer.runs import list_runs, locked, read_trust
from observer.settings import JobConfig, Plain, config_hash, definitions, differences, versions
from observer.signals import stop_on_signals
from observer.state import Arrays, below
from observer.totals import Snapshot
from observer.trace import TraceSettings, TraceWriter, trace_folder
from segmoe.events import ExpertKey
from segmoe.units import parse_bytes

EXPERTS_SHARE = 4
"""Without a budget, one in so many experts may be in memory."""

__all__ = ["JobConfig", "JobResult", "run_job"]


class JobResult(NamedTuple):
    """How a job ended."""

    run: str  # name
    status: str  # done or cancelled
    tokens: int  # of all passes, of earlier starts too
    dropped: int  # events that the statistics do not rest on


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What is known before anything runs."""

    config: JobConfig
    name: str
    texts: Sequence[Text]
    order: Order
    manifest: Any
    tokenizer: Any
    budget: dict[str, Any]  # arguments of segmoe.load
    resolved: dict[str, Plain]
    expert_bytes: Mapping[ExpertKey, int]

    @property
    def hash(self) -> str:
        return config_hash(self.resolved, self.manifest.digest)


def run_job(config: JobConfig, progress: JobProgress) -> JobResult:
    """Observe the model on the corpus; raise SegmoeError or ObserverError for what is expected to fail."""
    texts = read_corpus(config.corpus, config.limit)
    engine = open_db(config.db)
    try:
        job, earlier = _prepare(config, texts, engine)
        if earlier is None:
            verdict = _verify(job, progress)
            return _run(job, engine, None, verdict, progress)
        with locked(config.db, earlier["run_id"], job.name):
            return _run(job, engine, earlier["run_id"], {}, progress)
    finally:
        engine.dispose()


def _prepare(config: JobConfig, texts: list[Text], engine: Engine) -> tuple[_Job, RowMapping | None]:
    """Look at everything that can be refused before it costs time; also return the run to go on with, if any."""
    from segmoe.building import read_config
    from segmoe.checkpoint import open_checkpoint
    from segmoe.locating import build_manifest

    runs = {row["name"]: row for row in list_runs(engine)}
    checkpoint = open_checkpoint(config.model)
    manifest = build_manifest(checkpoint, read_config(checkpoint.folder))
    manifest.require_complete()
    expert_bytes = {key: segment.nbytes for key, segment in manifest.experts.items()}
    experts = config.experts
    if experts is None and config.budget is None:
        experts = max(1, len(expert_bytes) // EXPERTS_SHARE)
    trust = None if config.trust_from is None else read_trust(engine, config.trust_from)
    job = _Job(
        config=config,
        name=config.run or _free_name(runs),
        texts=texts,
        order=Order(texts, loop=config.loop, seed=config.seed),
        manifest=manifest,
        tokenizer=_tokenizer(checkpoint.folder),
        budget={"experts": experts, "budget": config.budget, "policy": config.policy, "trust": trust},
        resolved=config.resolved(
            experts=experts,
            corpus_sha256=sha256_of(texts),
            trust_sha256=None if trust is None else sha256_of(sorted(trust.items())),
        ),
        expert_bytes=expert_bytes,
    )
    earlier = runs.get(job.name)
    if earlier is not None and (changes := _changes(earlier, job)):
        raise RunDiffers(job.name, changes)
    return job, earlier


def _changes(earlier: RowMapping, job: _Job) -> list[str]:
    """What is not as it was when the run was begun; scores of two definitions do not mix."""
    meant = json.loads(earlier["versions"])
    changes = [
        f"{name} was version {meant[name]} and is {now} now"
        for name, now in definitions().items()
        if meant.get(name, now) != now
    ]
    if earlier["config_hash"] != job.hash:
        if earlier["checkpoint_digest"] != job.manifest.digest:
            changes.append("the checkpoint is another one")
        changes += differences(json.loads(earlier["config"]), job.resolved)
    return changes


def _verify(job: _Job, progress: JobProgress) -> dict[str, str]:
    """Compare with the stock model, if wanted; return columns of the run."""
    import segmoe

    if not job.config.verify:
        lines = ["not compared with the stock model (--no-verify)"]
        return {"parity": "unchecked", "parity_lines": json.dumps(lines)}
    progress.say("comparing with the stock model")
    settings = {name: value for name, value in job.budget.items() if name in ("experts", "budget")}
    if job.budget["trust"] is None:
        settings["policy"] = job.config.policy
    verdict = segmoe.verify(job.config.model, **settings)
    return {
        "parity": "equal" if verdict.equal else "different",
        "parity_lines": json.dumps(verdict.lines),
        "verdict": json.dumps(verdict.as_dict(), sort_keys=True),
    }


def _run(job: _Job, engine: Engine, run_id: int | None, verdict: Mapping[str, str], progress: JobProgress) -> JobResult:
    """Load the model, start the run or go on with it, and close it whatever happens."""
    import segmoe

    config = job.config
    writer = Writer(
        engine,
        LabelsOf(job.order, keep_text=config.keep_text),
        most_windows=config.windows,
        passage=Passages(job.order, job.tokenizer) if config.keep_text else None,
    )
    observation = Observation(
        job.expert_bytes,
        (text.context for text in job.texts),
        window_tokens=config.window_tokens,
        residency_cap=config.residency_events,
    )
    sink = _Later()
    model = segmoe.load(config.model, sink=sink, capture="contribution", **job.budget)
    progress.launch(job.name, job.resolved, goes_on=run_id is not None)
    with contextlib.ExitStack() as stack:
        state = None
        if run_id is None:
            run_id = writer.start(_start_of(job, model.segmoe.cache, verdict), job.expert_bytes)
            stack.enter_context(locked(config.db, run_id, job.name))
        else:
            state = writer.resume(run_id)
        trace = _trace(job, engine, run_id, observation)
        collector = sink.collector = Collector(observation, writer.record, trace=trace)
        if state is None:
            writer.record(_nothing_yet(observation))
        else:
            collector.restore(state)
        stack.enter_context(beating(lambda: writer.beat(collector.queue_state)))
        if config.metrics_port is not None:
            from observer.metrics import JobMetrics, served

            metrics = JobMetrics(collector, run=job.name, policy=config.policy)
            port = stack.enter_context(served(metrics, config.metrics_port))
            progress.say(f"metrics for Prometheus at http://127.0.0.1:{port}/metrics")
        status = _observe(job, model, collector, writer, progress, state)
        model.segmoe.close()
    not_evidence = sum(observation.not_evidence.values())
    return JobResult(job.name, status, collector.totals.tokens, collector.events_dropped_total + not_evidence)


class _Later:
    """A sink for a model that is loaded before its collector is."""

    collector: Collector

    def emit(self, event: Any, /) -> None:
        """Pass it on."""
        self.collector.emit(event)


def _observe(
    job: _Job, model: Any, collector: Collector, writer: Writer, progress: JobProgress, state: Arrays | None
) -> str:
    """Run the texts and close the run in the record, whatever happens."""
    status, error = "done", ""
    try:
        with progress, stop_on_signals(progress.say) as stop:
            loop = Loop(job.config, model, job.tokenizer, job.order, collector, progress, stop)
            if state is not None:
                loop.go_on(below("place", state))
            loop.score()
            loop.generate()
            if stop.is_set:
                status = "cancelled"
        collector.close(loop.place())
        if model.segmoe.sink_failures_total:
            raise ObserverError(f"the sink raised {model.segmoe.sink_failures_total} times; the record is incomplete")
    except KeyboardInterrupt:
        status = "cancelled"
    except BaseException as raised:
        status, error = "error", " ".join(str(raised).split()) or type(raised).__name__
        raise
    finally:
        with contextlib.suppress(CollectorError):
            collector.abandon()  # of no effect if it was closed above
        with contextlib.suppress(DatabaseError):  # if the record is what failed, it cannot be told there
            writer.drops({**collector.drops, **collector.observation.not_evidence})
            writer.beat(collector.queue_state)
            writer.finish(status, error)
    return status


def _start_of(job: _Job, cache: Any, verdict: Mapping[str, str]) -> RunStart:
    capacity = _capacity(cache, job.expert_bytes)
    return RunStart(
        name=job.name,
        checkpoint=str(job.manifest.folder),
        checkpoint_digest=job.manifest.digest,
        model_family=job.manifest.family,
        policy=job.config.policy,
        budget_experts=capacity[0],
        budget_bytes=capacity[1],
        capture="contribution",
        config=json.dumps(job.resolved, sort_keys=True),
        config_hash=job.hash,
        versions=json.dumps(versions(), sort_keys=True),
        sequences_planned=job.order.planned,
        **verdict,
    )


def _trace(job: _Job, engine: Engine, run_id: int, observation: Observation) -> TraceWriter | None:
    """Return the writer of the trace, if there is to be one; its folder holds nothing but what is catalogued."""
    config = job.config
    if not config.trace:
        return None
    settings = TraceSettings(
        every=config.trace_every,
        cap_bytes=parse_bytes(config.trace_cap),
        impacts=config.trace_impacts,
        file_rows=config.trace_file_rows,
    )
    experts = max(key.expert for key in job.expert_bytes) + 1
    trace = TraceWriter(trace_folder(config.db, run_id), settings, observation.gaps, experts)
    with engine.begin() as connection:
        sql = "SELECT file FROM v_trace WHERE run_id = ?"
        trace.delete_orphans(set(connection.exec_driver_sql(sql, (run_id,)).scalars()))
    return trace


def _free_name(taken: Mapping[str, Any]) -> str:
    """Return a name made from the time."""
    base = datetime.now(UTC).strftime("run-%Y%m%d-%H%M%S")
    return next(name for name in _numbered(base) if name not in taken)


def _numbered(base: str) -> Iterator[str]:
    yield base
    yield from (f"{base}-{number}" for number in range(2, 1000))


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


def sha256_of(parts: Sequence[tuple[Any, ...]]) -> str:
    """Digest of texts, or of trust by expert, as the resolved settings hold it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()
