"""Advice: what a provider says in an answer's headers about when, and how much, it will answer.

Invariant: a value that makes no sense is left out, with one log line for each header and process, so that a careless
provider can neither stop the requests nor fill the log.
"""

from __future__ import annotations

import datetime
import email.utils
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import rollout_service.logs as logs

_log = logs.logger(__name__)

Unit = Literal["requests", "tokens"]

_NAMES: tuple[tuple[Unit, str], ...] = (
    ("requests", "x-ratelimit-{}-requests"),
    ("tokens", "x-ratelimit-{}-tokens"),
    ("requests", "anthropic-ratelimit-requests-{}"),
    ("tokens", "anthropic-ratelimit-tokens-{}"),
)
"""Names of the headers of one budget, with `limit`, `remaining` or `reset` in place of the braces."""

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_SECONDS = (86400.0, 3600.0, 60.0, 1.0, 0.001)

_EPOCH = 1e9
"""A plain number above this is a time since 1970 rather than a duration: it would be 30 years."""

_SHOWN = 40
"""Most characters of a header that a log line shows."""

_ignored: set[str] = set()
"""Headers that were warned of."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of one of the provider's limits."""

    unit: Unit
    remaining: int
    """Requests or tokens that may still be sent before the reset."""
    limit: int | None
    """Those that may be sent from one reset to the next; None: not said."""
    reset_seconds: float
    """Seconds until everything may be sent again."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What one answer says."""

    retry_after: float | None = None
    """Seconds to wait before the next request; None: not said."""
    budgets: tuple[Budget, ...] = ()


def read(headers: Mapping[str, str]) -> Advice:
    """What these headers say. Their names may be written in capitals or not."""
    lower = {str(name).lower(): str(value) for name, value in headers.items()}
    if not any(name.startswith(("retry-after", "x-ratelimit-", "anthropic-ratelimit-")) for name in lower):
        return Advice()
    budgets = (_budget(unit, pattern, lower) for unit, pattern in _NAMES)
    return Advice(_retry_after(lower), tuple(budget for budget in budgets if budget is not None))


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        if (text := headers.get(name)) is None:
            continue
        seconds = seconds_until(text)
        if seconds is not None:
            return seconds * scale
        _ignore(name, text)
    return None


def seconds_until(text: str) -> float | None:
    """Seconds until the time that a header names: as a number of seconds, a duration such as `1m30s` or `20ms`, a date
    of HTTP, a date of ISO 8601, or seconds since 1970. At least 0. None: it names none."""
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        if not math.isfinite(number):
            return None
        return max(0.0, number - time.time() if number > _EPOCH else number)
    if text and (match := _DURATION.fullmatch(text)) is not None:
        return sum(float(part) * unit for part, unit in zip(match.groups(), _SECONDS, strict=True) if part)
    for parse in (email.utils.parsedate_to_datetime, datetime.datetime.fromisoformat):
        try:
            return max(0.0, parse(text).timestamp() - time.time())
        except (ValueError, OverflowError, OSError):
            continue
    return None


def _budget(unit: Unit, pattern: str, headers: Mapping[str, str]) -> Budget | None:
    named = {part: pattern.format(part) for part in ("remaining", "limit", "reset")}
    given = {part: headers[name] for part, name in named.items() if name in headers}
    if "remaining" not in given or "reset" not in given:
        return None  # nothing follows from a limit alone
    remaining, reset = _count(given["remaining"]), seconds_until(given["reset"])
    limit = _count(given["limit"]) if "limit" in given else None
    if remaining is None:
        _ignore(named["remaining"], given["remaining"])
    elif reset is None or given["reset"].strip().startswith("-"):
        _ignore(named["reset"], given["reset"])
    elif "limit" in given and (not limit or remaining > limit):
        _ignore(named["limit"], given["limit"])
    else:
        return Budget(unit, remaining, limit, reset)
    return None


def _count(text: str) -> int | None:
    """A number of requests or tokens; None: it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if math.isfinite(number) and 0 <= number < 1e15 else None


def _ignore(name: str, text: str) -> None:
    if name not in _ignored:
        _ignored.add(name)
        _log.warning("A provider's header %s is ignored, because it makes no sense: %r.", name, text[:_SHOWN])
