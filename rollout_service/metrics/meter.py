"""Meter: the numbers of one process.

Invariant: only metrics of the table are kept, each with exactly its labels. A counter never sinks. What is recorded
goes on to the sink at once, so both have the same numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from rollout_service.metrics.table import TABLE, Metric

Sink = Callable[[Metric, float, dict[str, str]], None]
"""Takes each value that is recorded: what a counter grows by, what a gauge is set to, what a histogram observes."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The state of one metric with one set of labels."""

    name: str
    labels: tuple[str, ...]
    """Values of the labels, in the table's order."""
    value: float
    """A counter's or a gauge's value; the sum of what a histogram observed."""
    buckets: tuple[int, ...] = ()
    """How often a histogram observed a value in each bucket, the last one without an upper bound."""

    @property
    def count(self) -> int:
        """How often a histogram observed something."""
        return sum(self.buckets)


@dataclass(slots=True)
class _Cell:
    value: float = 0.0
    buckets: list[int] = field(default_factory=list)


class Meter:
    """Values by metric and labels. Use it in one thread."""

    def __init__(self, sink: Sink | None = None) -> None:
        """
        Args:
            sink: exports what is recorded; None: nothing does.
        """
        self._sink = sink
        self._cells: dict[tuple[str, tuple[str, ...]], _Cell] = {}

    def add(self, name: str, value: float = 1.0, **labels: str) -> None:
        """Have a counter grow. With 0 it is there, and does not grow.

        Raises:
            ValueError: the value is below 0; the table has no such counter, or it has other labels.
        """
        if value < 0:
            raise ValueError(f"{name} cannot grow by {value}")
        metric, cell = self._find(name, "counter", labels)
        cell.value += float(value)
        if value:
            self._send(metric, value, labels)

    def reach(self, name: str, total: float, **labels: str) -> None:
        """Have a counter grow to a total that is counted elsewhere. A lower total changes nothing."""
        _, cell = self._find(name, "counter", labels)
        self.add(name, max(0.0, total - cell.value), **labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge.

        Raises:
            ValueError: the table has no such gauge, or it has other labels.
        """
        metric, cell = self._find(name, "gauge", labels)
        cell.value = float(value)
        self._send(metric, value, labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Have a histogram observe a value.

        Raises:
            ValueError: the table has no such histogram, or it has other labels.
        """
        metric, cell = self._find(name, "histogram", labels)
        if not cell.buckets:
            cell.buckets = [0] * (len(metric.buckets) + 1)
        cell.value += float(value)
        cell.buckets[bisect_left(metric.buckets, value)] += 1
        self._send(metric, value, labels)

    def readings(self) -> list[Reading]:
        """All values, in the table's order."""
        return ordered(Reading(*key, cell.value, tuple(cell.buckets)) for key, cell in self._cells.items())

    def _find(self, name: str, kind: str, labels: Mapping[str, str]) -> tuple[Metric, _Cell]:
        metric = TABLE.get(name)
        if metric is None or metric.kind != kind or labels.keys() != set(metric.labels):
            raise ValueError(f"the table has no {kind} {name} with the labels {sorted(labels)}")
        values = tuple(labels[label] for label in metric.labels)
        return metric, self._cells.setdefault((name, values), _Cell())

    def _send(self, metric: Metric, value: float, labels: dict[str, str]) -> None:
        if self._sink is not None:
            self._sink(metric, float(value), labels)  # Ray refuses the numbers of numpy


def ordered(readings: Iterable[Reading]) -> list[Reading]:
    """The readings in the table's order."""
    rank = {name: position for position, name in enumerate(TABLE)}
    return sorted(readings, key=lambda reading: (rank[reading.name], reading.labels))
