"""Exporter: what an actor's meter records goes on to Ray, which Prometheus scrapes.

Invariant: only actors export. A process that ends takes its values with it: Ray forgets its gauges after two of its
report intervals, 20 s by default.
"""

from __future__ import annotations

from collections.abc import Callable

import ray
from ray.util import metrics

from rollout_service.config import RolloutConfig
from rollout_service.metrics.meter import Meter
from rollout_service.metrics.table import PREFIX, SERVICE_LABEL, Metric


class _RaySink:
    """Records in Ray's metrics, which are made when they are first needed."""

    def __init__(self, service: str) -> None:
        self._service = {SERVICE_LABEL: service}
        self._records: dict[str, Callable[[float, dict[str, str]], None]] = {}

    def __call__(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        record = self._records.get(metric.name)
        if record is None:
            record = self._records[metric.name] = self._made(metric)
        record(value, labels)

    def _made(self, metric: Metric) -> Callable[[float, dict[str, str]], None]:
        """Makes the metric. Returns what records a value in it."""
        name, keys = f"{PREFIX}{metric.name}", (SERVICE_LABEL, *metric.labels)
        made: metrics.Metric
        record: Callable[[float, dict[str, str]], None]
        if metric.kind == "counter":
            counter = metrics.Counter(name, metric.text, keys)
            made, record = counter, counter.inc
        elif metric.kind == "gauge":
            gauge = metrics.Gauge(name, metric.text, keys)
            made, record = gauge, gauge.set
        else:
            histogram = metrics.Histogram(name, metric.text, list(metric.buckets), keys)
            made, record = histogram, histogram.observe
        made.set_default_tags(self._service)
        return record


def meter(config: RolloutConfig) -> Meter:
    """A meter for an actor of this service, which exports unless `service.metrics` is off. Elsewhere nothing does."""
    in_actor = ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
    return Meter(_RaySink(config.service.name) if in_actor and config.service.metrics else None)
