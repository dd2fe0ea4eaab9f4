"""The service's numbers as Prometheus reads them at the gateway.

Invariant: a number of the status that a metric of the table has comes from the metric, so each has one name once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import rollout_service.metrics.text as text
from rollout_service.metrics.meter import Reading
from rollout_service.metrics.table import PREFIX, TABLE

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {"finished", "scored"}


def prometheus(readings: Sequence[Reading], status: Mapping[str, Any]) -> str:
    """The text of all metrics, and of the other numbers in `RolloutClient.status()`."""
    return text.prometheus(readings) + "".join(f"{line}\n" for line in _lines(status))


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    for key, value in status.items():
        name = f"{key}_total" if key in _COUNTERS else key
        if isinstance(value, (int, float)) and not {name, f"{name}_total"} & TABLE.keys():
            yield f"# TYPE {PREFIX}{name} {'counter' if key in _COUNTERS else 'gauge'}"
            yield f"{PREFIX}{name} {value:.17g}"
