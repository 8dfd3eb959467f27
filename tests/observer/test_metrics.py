"""What Prometheus is told is what the collector knows."""

import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from observer.collect import Collector
from observer.errors import ObserverError
from observer.metrics import JobMetrics, served
from observer.observation import Observation
from segmoe.events import StepDone
from tests.observer.streams import CONTEXTS, EXPERT_BYTES, batches


def scraped(port: int) -> dict[str, float]:
    directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy this machine has
    with directly.open(f"http://127.0.0.1:{port}/metrics", timeout=300) as answer:
        text = answer.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.name + "".join(f"/{v}" for v in sample.labels.values()): sample.value for sample in samples}


def test_the_series_say_what_the_collector_knows_and_do_not_grow_with_experts() -> None:
    run = batches(1, 4)
    collector = Collector(Observation(EXPERT_BYTES, CONTEXTS))
    with served(JobMetrics(collector, run="r", policy="lru"), 0) as port:
        before = scraped(port)
        for batch in run:
            collector.begin(batch.texts, True)
            for event in batch.events:
                collector.emit(event)
        collector.close()
        collector.emit(run[0].events[0])  # after the end: dropped
        after = scraped(port)
    steps = [event for batch in run for event in batch.events if isinstance(event, StepDone)]
    assert after["moe_tokens_total"] == sum(step.tokens for step in steps)
    assert after["moe_expert_hits_total"] == 12 and after["moe_passes_total"] == 4 and after["moe_texts_total"] == 16
    assert after["moe_events_dropped_total/closed"] == 1
    assert 1 < after["moe_nll_nats"] < 5 and after["moe_run_info/lru/r"] == 1
    assert set(after) - set(before) == {"moe_events_dropped_total/closed"} and len(after) < 20


def test_a_port_that_is_taken_is_a_sentence() -> None:
    collector = Collector(Observation(EXPERT_BYTES, CONTEXTS))
    metrics = JobMetrics(collector, run="r", policy="lru")
    with (
        served(metrics, 0) as port,
        pytest.raises(ObserverError, match=f"port {port} cannot be used for metrics"),
        served(metrics, port),
    ):
        pass
    collector.close()
