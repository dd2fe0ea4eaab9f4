"""Logging: standard `logging`, one logger per module, made by `logs.logger(__name__)`.

Invariants:

* No record of our loggers shows a secret: message and traceback are redacted before any handler sees them.
* A kind of event is logged at most once in 10 seconds per process; the next line says how many were left out. The
  kind is the message before its arguments are filled in, or what `event(kind)` names.
* Only the service's own processes (coordinator, environment actors, replicas) are configured, by `configure`. A
  trainer that imports the library keeps its own logging; our loggers then behave like those of any library.

In the service's processes records go to stderr, which Ray writes to the worker's `.err` file in its session folder and
prints in the driver unless it was started with `log_to_driver=False`.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rollout_service.errors import Fault
from rollout_service.redaction import RedactingFilter

PACKAGES = ("rollout_service", "actors", "deploy")
"""The loggers above all of ours."""

INTERVAL_SECONDS = 10.0
"""Least time between two lines of one kind of event."""

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_MOST_KINDS = 1000
"""Kinds that are remembered; beyond that all are forgotten, so that memory stays bounded."""


@dataclass(slots=True)
class _Kind:
    said_at: float
    left_out: int = 0


class RateLimit(logging.Filter):
    """Lets one record of each kind pass per interval, and counts the others. Thread-safe."""

    def __init__(self, seconds: float = INTERVAL_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: seconds that never go backwards.
        """
        super().__init__()
        self._seconds = seconds
        self._clock = clock
        self._kinds: dict[Any, _Kind] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written; if others of its kind were left out before, it then says how many."""
        kind = getattr(record, "event", None) or (record.name, record.msg)
        now = self._clock()
        with self._lock:
            known = self._kinds.get(kind)
            if known is not None and now - known.said_at < self._seconds:
                known.left_out += 1
                return False
            if known is None and len(self._kinds) >= _MOST_KINDS:
                self._kinds.clear()
            self._kinds[kind] = _Kind(now)
        if known is not None and known.left_out:
            lines = "line" if known.left_out == 1 else "lines"
            first, newline, stack = record.getMessage().partition("\n")
            record.msg = f"{first} [{known.left_out} similar {lines} left out]{newline}{stack}"
            record.args = ()
        return True

    def is_due(self, kind: str) -> bool:
        """Whether a record of this kind would be written now. If not, it is counted as left out: do not make it."""
        with self._lock:
            known = self._kinds.get(kind)
            if known is None or self._clock() - known.said_at >= self._seconds:
                return True
            known.left_out += 1
            return False

    def reset(self) -> None:
        """Forget what was logged."""
        with self._lock:
            self._kinds.clear()


rate_limit = RateLimit()
"""The one of this process."""

_redaction = RedactingFilter()


def logger(name: str) -> logging.Logger:
    """`logging.getLogger(name)`, with our rate limit and redaction. Call it with `__name__`."""
    found = logging.getLogger(name)
    for each in (rate_limit, _redaction):
        found.addFilter(each)  # twice is once
    return found


def event(kind: str) -> dict[str, str]:
    """For `extra=`: rate-limit this record by `kind` instead of by its message."""
    return {"event": kind}


def log_fault(log: logging.Logger, trajectory_id: str, fault: Fault, attempt: int = 1) -> None:
    """Log a fault with its stack, as a warning. Faults of one kind are one kind of event."""
    again = "another attempt may help" if fault.retryable else "final"
    stack = "" if fault.traceback is None else f"\n{fault.traceback}"
    log.warning(
        "Episode %s, attempt %d: fault of kind %s (%s): %s: %s%s",
        trajectory_id,
        attempt,
        fault.kind,
        again,
        fault.error,
        fault.message,
        stack,
        extra=event(f"fault {fault.kind}"),
    )


def configure(level: str | int = logging.INFO) -> None:
    """Have this process, which is the service's own, write our records of `level` and above to stderr. Where the root
    logger has handlers already (Ray's `LoggingConfig`, a test), they get the records instead."""
    has_own = bool(logging.getLogger().handlers)
    for name in PACKAGES:
        package = logging.getLogger(name)
        package.setLevel(level)
        if has_own or package.handlers:
            continue
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT))
        package.addHandler(handler)
        package.propagate = False  # an engine may give the root logger handlers later: each line once
