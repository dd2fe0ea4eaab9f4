"""The service's status as Prometheus reads it.

Invariant: every number of the status has one name, and a label's value cannot end its line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_PREFIX = "rollout_service_"
_COUNTERS = {"finished", "scored", "lost_actors", "late", "prompt_tokens", "cached_tokens"}
_COLLECTION = {"episodes", "done", "waiting", "running"}


def prometheus(status: Mapping[str, Any]) -> str:
    """The text of the numbers in `RolloutClient.status()`."""
    return "".join(f"{line}\n" for line in _lines(status))


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    for name, value in status.items():
        if isinstance(value, (int, float)):
            yield from _metric(f"{name}_total" if name in _COUNTERS else name, name in _COUNTERS, [("", value)])
    faults = [(_label("kind", kind), count) for kind, count in status["faults"].items()]
    yield from _metric("faults_total", True, faults)
    for name in sorted(_COLLECTION):
        values = [
            (_label("collection", collection), progress[name])
            for collection, progress in status["collections"].items()
            if isinstance(progress.get(name), (int, float))
        ]
        yield from _metric(f"collection_{name}", False, values)


def _metric(name: str, is_counter: bool, values: list[tuple[str, float]]) -> Iterator[str]:
    if values:
        yield f"# TYPE {_PREFIX}{name} {'counter' if is_counter else 'gauge'}"
        yield from (f"{_PREFIX}{name}{label} {value:.17g}" for label, value in values)


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{{{name}="{escaped}"}}'
