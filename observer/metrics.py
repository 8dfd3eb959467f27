"""How a job is, for Prometheus: a fixed number of series, however many experts there are. Scores are in the record.

moe_tokens_total                   tokens of all forward passes, without padding
moe_passes_total                   forward passes
moe_texts_total                    texts observed to their end
moe_expert_hits_total              experts found in memory, once per pass and expert
moe_expert_misses_total            experts not found in memory
moe_expert_loads_total             experts read from disk
moe_expert_evictions_total         experts that left memory
moe_expert_read_bytes_total        bytes of experts read from disk
moe_events_total                   events that the statistics rest on
moe_events_dropped_total{reason}   events that they do not, by reason
moe_nll_nats                       mean NLL of the texts' predicted tokens
moe_run_info{run,policy}           1
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as MetricsSource

from observer.collect import Collector
from observer.errors import ObserverError

COUNTERS = {
    "tokens": ("moe_tokens", "Tokens of all forward passes, without padding."),
    "hits": ("moe_expert_hits", "Experts found in memory, once per pass and expert."),
    "misses": ("moe_expert_misses", "Experts not found in memory."),
    "loads": ("moe_expert_loads", "Experts read from disk."),
    "evictions": ("moe_expert_evictions", "Experts that left memory."),
    "bytes_read": ("moe_expert_read_bytes", "Bytes of experts read from disk."),
}
"""Field of observer.totals.Totals -> name and help of its series."""


class JobMetrics(MetricsSource):
    """Asks the collector when Prometheus asks; nothing is counted twice."""

    def __init__(self, collector: Collector, *, run: str, policy: str) -> None:
        self._collector, self._run, self._policy = collector, run, policy

    def collect(self) -> Iterable[Metric]:
        """Give all series as they stand."""
        totals, seen = self._collector.totals, self._collector.observation
        for field, (name, meaning) in COUNTERS.items():
            yield CounterMetricFamily(name, meaning, value=getattr(totals, field))
        yield CounterMetricFamily("moe_passes", "Forward passes.", value=seen.passes)
        yield CounterMetricFamily("moe_texts", "Texts observed to their end.", value=seen.texts_total)
        yield CounterMetricFamily(
            "moe_events", "Events that the statistics rest on.", value=self._collector.events_seen_total
        )
        dropped = CounterMetricFamily("moe_events_dropped", "Events that they do not rest on.", labels=["reason"])
        for reason, count in {**self._collector.drops, **seen.not_evidence}.items():
            dropped.add_metric([reason], count)
        yield dropped
        nll = totals.nll_sum / totals.predicted if totals.predicted else 0.0
        yield GaugeMetricFamily("moe_nll_nats", "Mean NLL of the texts' predicted tokens.", value=nll)
        info = GaugeMetricFamily("moe_run_info", "The run.", labels=["run", "policy"])
        info.add_metric([self._run, self._policy], 1)
        yield info


@contextmanager
def served(metrics: JobMetrics, port: int, host: str = "127.0.0.1") -> Iterator[int]:
    """While this lasts, answer Prometheus on this port (0: any); gives the port."""
    registry = CollectorRegistry()
    registry.register(metrics)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise ObserverError(f"port {port} cannot be used for metrics ({error.strerror}); give another one") from None
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
