"""Numbers for Prometheus: the Batcher's at the moment they are asked for, and what requests took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hicache_compile.serving.http.service import Batching

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 32)


class Metrics:
    """A registry of one application.

    Args:
        batcher: whose statistics are told.
    """

    def __init__(self, batcher: Batching) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_OfBatcher(batcher))
        self.requests = Counter(
            "hicache_requests", "HTTP requests by address and status.", ["path", "status"], registry=self._registry
        )
        self.request_seconds = Histogram(
            "hicache_request_seconds",
            "Seconds of requests for pictures, accepted to finished.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.first_step_seconds = Histogram(
            "hicache_first_step_seconds",
            "Seconds of a picture from acceptance to the end of its first step.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.pictures = Counter("hicache_pictures", "Pictures made.", registry=self._registry)
        self.of_pack = Counter(
            "hicache_pack_pictures",
            "Pictures made under a policy of the pack.",
            ["policy"],
            registry=self._registry,
        )
        self.steps = Counter("hicache_steps", "Steps of pictures by decision.", ["decision"], registry=self._registry)

    def text(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)


class _OfBatcher(Collector):
    def __init__(self, batcher: Batching) -> None:
        self._batcher = batcher

    def collect(self) -> Iterator[Metric]:
        now = self._batcher.statistics()
        yield GaugeMetricFamily("hicache_waiting", "Pictures that wait to be made.", now.waiting)
        yield GaugeMetricFamily("hicache_running", "Pictures that are being made.", now.running)
        yield GaugeMetricFamily("hicache_pages", "Pages of anchors in the pool.", now.pages)
        yield GaugeMetricFamily("hicache_pages_used", "Pages of anchors that rows hold.", now.pages_used)
        rows = CounterMetricFamily("hicache_rows", "Rows that the denoiser was called with.", labels=["kind"])
        rows.add_metric(["full"], now.full_rows)
        rows.add_metric(["forecast"], now.forecast_rows)
        yield rows
        total = sum(rows * calls for rows, calls in now.batches.items())
        yield HistogramMetricFamily("hicache_batch_rows", "Rows in a call.", _cumulative(now.batches), total)


def _cumulative(batches: Mapping[int, int]) -> list[tuple[str, float]]:
    bounds = [(str(bound), sum(calls for rows, calls in batches.items() if rows <= bound)) for bound in ROWS]
    return [*bounds, ("+Inf", sum(batches.values()))]
