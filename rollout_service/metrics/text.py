"""Readings in the forms that others read: a flat dict for a trainer's logger, text for Prometheus.

Invariant: both forms have the same numbers, and a label's value cannot end its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, groupby

from rollout_service.metrics.meter import Reading
from rollout_service.metrics.table import PREFIX, TABLE


def flat(readings: Iterable[Reading]) -> dict[str, float]:
    """The values by name, with the labels' values after slashes: `episodes_total/airline/completed`. A histogram has a
    `count`, a `sum` and a `mean`: `reward/airline/mean`. There is no mean of nothing."""
    found: dict[str, float] = {}
    for reading in readings:
        name = "/".join((reading.name, *reading.labels))
        if TABLE[reading.name].kind != "histogram":
            found[name] = reading.value
            continue
        found[f"{name}/count"], found[f"{name}/sum"] = float(reading.count), reading.value
        if reading.count:
            found[f"{name}/mean"] = reading.value / reading.count
    return found


def prometheus(readings: Iterable[Reading]) -> str:
    """The text that Prometheus scrapes.

    Args:
        readings: in the table's order.
    """
    return "".join(f"{line}\n" for line in _lines(readings))


def _lines(readings: Iterable[Reading]) -> Iterator[str]:
    for name, same in groupby(readings, key=lambda reading: reading.name):
        metric = TABLE[name]
        yield f"# HELP {PREFIX}{name} {metric.text}"
        yield f"# TYPE {PREFIX}{name} {metric.kind}"
        for reading in same:
            labels = list(zip(metric.labels, reading.labels, strict=True))
            if metric.kind != "histogram":
                yield _line(name, labels, reading.value)
                continue
            bounds = [*(f"{bound:g}" for bound in metric.buckets), "+Inf"]
            for bound, count in zip(bounds, accumulate(reading.buckets), strict=True):
                yield _line(f"{name}_bucket", [*labels, ("le", bound)], count)
            yield _line(f"{name}_sum", labels, reading.value)
            yield _line(f"{name}_count", labels, reading.count)


def _line(name: str, labels: list[tuple[str, str]], value: float) -> str:
    inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{PREFIX}{name}{f'{{{inside}}}' if inside else ''} {value:.17g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
