"""Every error and fault of the service, and `boundary()`, the one place that classifies them.

Invariant: nothing that goes wrong is ever turned into a reward. It becomes one of two things:

* a `RolloutError`: the caller asked for something that cannot be done. It names the field, the value and the
  remedy, is raised before work starts wherever that is possible, and is never retried.
* an `EpisodeFault`: an episode could not be finished. It says *whose* fault it is (`FaultKind`) and whether another
  attempt may help. The scheduler retries it; what is left after the last attempt is reported as a failure.

What the policy itself does wrong (a malformed call, an empty turn) is neither: that is data, see `Outcome`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class FaultKind(StrEnum):
    """Whose fault it is that an episode could not be finished."""

    POLICY = "policy"
    """The engine or the way to it: a replica died, a request timed out, an answer broke the protocol."""
    USER_SIMULATOR = "user_simulator"
    """The user simulator's model: API failure, empty, malformed or refused answer."""
    ENVIRONMENT = "environment"
    """The τ² environment or orchestrator raised where it should not."""
    EVALUATOR = "evaluator"
    """The evaluator or its judge failed, so the episode has no score."""
    SERVICE = "service"
    """This service: an actor died, a worker ran out of memory, an object was lost."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong in an episode, as stored in its trajectory."""

    kind: FaultKind
    error: str
    """Name of the exception type."""
    message: str
    """One line, secrets removed."""
    retryable: bool
    """True when another attempt may end differently."""


class EpisodeFault(Exception):
    """Raised inside an episode when something other than the policy's own behaviour stops it."""

    def __init__(self, kind: FaultKind, message: str, *, error: str = "EpisodeFault", retryable: bool = True) -> None:
        super().__init__(message)
        self.fault = Fault(FaultKind(kind), error, message, retryable)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_episode_fault, (self.fault,)


def _rebuild_episode_fault(fault: Fault) -> EpisodeFault:
    return EpisodeFault(fault.kind, fault.message, error=fault.error, retryable=fault.retryable)


class SharedWriteError(BaseException):
    """An episode wrote to the data that all episodes of its process share. Not an `Exception`, because τ² makes a
    tool's answer of every one of those, and then the episode would go on."""


@contextmanager
def boundary(kind: FaultKind, *, secrets: Iterable[str] = ()) -> Iterator[None]:
    """Turn any exception that crosses this boundary into an `EpisodeFault` of `kind`.

    An `EpisodeFault` raised further in passes through: the innermost boundary knows best. `secrets` are removed from
    the message.
    """
    try:
        yield
    except (EpisodeFault, RolloutError, EpisodeEnd):
        raise
    except (Exception, SharedWriteError) as error:
        message = redact(f"{error}" or repr(error), secrets)
        raise EpisodeFault(kind, message, error=type(error).__name__) from error


_KEY_SHAPES = re.compile(r"\b(sk|pk|rk|key|hf|gsk|xai)[-_][A-Za-z0-9_\-]{12,}|(?i:bearer)\s+[A-Za-z0-9._\-]{8,}")


def redact(text: str, secrets: Iterable[str] = (), limit: int = 2000) -> str:
    """`text` with every secret, and everything shaped like an API key, replaced; cut to `limit` characters."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[redacted]")
    text = _KEY_SHAPES.sub("[redacted]", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*)?(?:Error|Exception|Fault)\b(?:\(\)$|:?\s*)")
"""How the last line of a traceback starts, or all that is said of an exception without a message."""


def first_line(error: BaseException) -> str:
    """The first line of what the error says, or its name where it says nothing."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def last_cause(text: str) -> str:
    """What the last exception in a traceback's text says, on one line and without secrets; the last line where there is
    no exception; nothing where it says nothing."""
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    last = ([line for line in lines if _EXCEPTION.match(line)] or lines)[-1]
    return redact(_EXCEPTION.sub("", last).strip(), limit=1000)


class EpisodeEnd(Exception):
    """Ends the official orchestrator's loop early: a limit of ours was reached, or the policy broke the protocol.

    Not an error. `reason` is one of `max_turns`, `context_length`, `response_length`, `wall_time`, `agent_error`,
    `cancelled`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RolloutError(Exception):
    """Base of every error that is the caller's to mend. `remedy` says what to do."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem} {remedy}".strip())
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problem, self.remedy)


class ConfigError(RolloutError):
    """A setting is unknown or has a bad value."""


class TaskError(RolloutError):
    """An unknown domain, split or task id, or a number of episodes that cannot be made."""


class CodecError(RolloutError):
    """The tokenizer or its chat template cannot be used, or could not be proved."""


class Tau2Error(RolloutError):
    """τ²-bench is missing, is the wrong package, or does not support what was asked."""


class StorageError(RolloutError):
    """A trajectory file cannot be read or written. What was written before stays."""


class ServiceError(RolloutError):
    """The service or its cluster cannot be started or reached."""


class WeightError(RolloutError):
    """Weights that cannot be loaded: another model's, a version that goes backwards, an update under way."""


class UserSimulatorError(RolloutError):
    """The user simulator's endpoint cannot be used: it is down, or its key is missing."""
