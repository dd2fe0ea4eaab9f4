"""Every error and fault of the service, and `boundary()`, the one place that classifies them.

Invariant: nothing that goes wrong is ever turned into a reward. It becomes one of two things:

* a `RolloutError`: the caller asked for something that cannot be done. It names the field, the value and the
  remedy, is raised before work starts wherever that is possible, and is never retried.
* an `EpisodeFault`: an episode could not be finished. It says *whose* fault it is (`FaultKind`), keeps the stack of
  what was raised, and says whether another attempt may help. The scheduler retries it if so; what is left after the
  last attempt is reported as a failure.

What the policy itself does wrong (a malformed call, an empty turn) is neither: that is data, see `Outcome`.

A fault is final, and not retried, if another attempt is bound to end the same (`is_final`):

* the exception says so by an attribute `retryable = False`, as a request that an engine refuses does;
* it is a programming error (`TypeError`, `AttributeError`, `NameError`, `NotImplementedError`, `AssertionError`) that
  was raised in this service's own code.

Everything else may be retried: what infrastructure does (`OSError`, `TimeoutError`, a lost actor), and whatever τ², an
API client or an engine's library raises, a `TypeError` included, because a half answer can make them raise anything.

Neither errors nor faults hold a secret: their texts are redacted when they are made.
"""

from __future__ import annotations

import re
import traceback as tracebacks
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from rollout_service.redaction import conceal, redact, safe_cause, shows_secret
from rollout_service.termination import TerminationReason

_LONGEST_MESSAGE = 2000
"""Characters of a fault's message."""

_LONGEST_TRACEBACK = 8000
"""Characters of a fault's traceback. Of a longer one the end is kept, where the exception stands."""


class FaultKind(StrEnum):
    """Whose fault it is that an episode could not be finished."""

    POLICY = "policy"
    """The engine or the connection to it: a replica died, a request timed out, an answer broke the protocol."""
    USER_SIMULATOR = "user_simulator"
    """The user simulator's model: API failure, empty, malformed or refused answer."""
    ENVIRONMENT = "environment"
    """The τ² environment or orchestrator raised an unexpected error."""
    EVALUATOR = "evaluator"
    """The evaluator or its judge failed, so the episode has no score."""
    SERVICE = "service"
    """This service: an actor died, a worker ran out of memory, an object was lost, a tape has no answer."""

    @property
    def remedy(self) -> str:
        """What a person can do about faults of this kind."""
        return _REMEDIES[self]


_REMEDIES = {
    FaultKind.POLICY: "See the replicas' logs (or the server's at policy.url), and policy.timeout_seconds.",
    FaultKind.USER_SIMULATOR: "Check user.model, user.base_url and the key in user.api_key_var; user.timeout_seconds "
    "and user.retries bound its requests.",
    FaultKind.ENVIRONMENT: "Leave the task out with tasks.ids if it is always the same one, and report it.",
    FaultKind.EVALUATOR: "Check evaluation.judge if the tasks have NL assertions; else try evaluation.mode: official.",
    FaultKind.SERVICE: "See the environment actors' logs; with too little memory, lower service.slots. What a tape "
    "lacks is recorded with tape.mode: replay_or_record.",
}


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
    traceback: str | None = field(default=None, repr=False, metadata={"added": True})
    """Where it was raised, as Python prints it, secrets removed; the last 8,000 characters. None: nothing
    was raised, or the record was written before version 0.2."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", redact(self.message, _LONGEST_MESSAGE))
        if self.traceback is not None:
            text = redact(self.traceback)
            if len(text) > _LONGEST_TRACEBACK:
                text = "…" + text[1 - _LONGEST_TRACEBACK :]
            object.__setattr__(self, "traceback", text)

    @classmethod
    def of(
        cls, kind: FaultKind, error: BaseException, *, message: str | None = None, retryable: bool | None = None
    ) -> Fault:
        """The fault that an exception is. An error that Ray brought from another process is reported as its cause.

        Args:
            message: None: what the exception says.
            retryable: None: as `is_final` has it.
        """
        cause = _remote_cause(error)
        if message is None:
            message = str(cause) or repr(cause)
        if retryable is None:
            retryable = not is_final(error)
        return cls(kind, type(cause).__name__, message, retryable, traceback_of(error))


POISON_TASK = "PoisonTask"
"""Name of the fault of an episode that was given up because it lost its environment actor too often."""


class EpisodeFault(Exception):
    """Raised inside an episode when something other than the policy's own behaviour stops it."""

    def __init__(
        self,
        kind: FaultKind,
        message: str,
        *,
        error: str = "EpisodeFault",
        retryable: bool = True,
        traceback: str | None = None,
    ) -> None:
        self.fault = Fault(FaultKind(kind), error, message, retryable, traceback)
        super().__init__(self.fault.message)

    @classmethod
    def of_fault(cls, fault: Fault) -> EpisodeFault:
        """The exception for a fault that is known already."""
        return cls(fault.kind, fault.message, error=fault.error, retryable=fault.retryable, traceback=fault.traceback)

    def __reduce__(self) -> tuple[Any, ...]:
        return EpisodeFault.of_fault, (self.fault,)


class SharedWriteError(BaseException):
    """An episode wrote to the data that all episodes of its process share. It is not an `Exception`, because τ² turns
    every exception of a tool into an answer, and the episode would go on."""


_PROGRAMMING_ERRORS = (TypeError, AttributeError, NameError, NotImplementedError, AssertionError)

_OUR_PACKAGES = {"rollout_service", "actors", "deploy"}


def is_final(error: BaseException) -> bool:
    """Whether another attempt is bound to end the same, see this module's docstring."""
    cause = _remote_cause(error)
    retryable = getattr(cause, "retryable", None)
    if retryable is not None:
        return not retryable
    if cause is not error:  # `attach_origin` would have marked it there
        return False
    return isinstance(error, _PROGRAMMING_ERRORS) and _raised_in_our_code(error)


def attach_origin(error: BaseException) -> None:
    """Attach to an error, before it leaves its process, what is lost on the way: its stack, as a note that tracebacks
    show, and whether it is final, which `is_final` judges by the stack."""
    if is_final(error):
        error.retryable = False  # type: ignore[attr-defined]
    error.add_note(f"Stack in the process that raised it:\n{traceback_of(error)}")


def _raised_in_our_code(error: BaseException) -> bool:
    frames = list(tracebacks.walk_tb(error.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals.get("__name__")).partition(".")[0] in _OUR_PACKAGES


def traceback_of(error: BaseException) -> str:
    """The traceback of an error and of its causes, as Python prints it. It may show a secret: `Fault` takes it out."""
    return _ANSI_COLOUR.sub("", "".join(tracebacks.format_exception(error))).rstrip()


_ANSI_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""Ray colours the tracebacks that it brings from other processes."""


def _remote_cause(error: BaseException) -> BaseException:
    """What was raised in the other process, where Ray brought the error from one."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


@contextmanager
def boundary(kind: FaultKind, final: Callable[[BaseException], bool] = is_final) -> Iterator[None]:
    """Turn any exception that crosses this boundary into an `EpisodeFault` of `kind`.

    An `EpisodeFault` raised further in passes through: the innermost boundary knows best.

    Args:
        final: says whether another attempt is of no use after an error.
    """
    try:
        yield
    except EpisodeFault as error:
        if error.fault.traceback is None:
            error.fault = replace(error.fault, traceback=traceback_of(error))
        raise
    except (RolloutError, EpisodeEnd):
        raise
    except (Exception, SharedWriteError) as error:
        raise EpisodeFault.of_fault(Fault.of(kind, error, retryable=not final(error))) from safe_cause(error)


@contextmanager
def discreet(what: str) -> Iterator[None]:
    """Keep secrets out of tracebacks, which Ray logs. A `RolloutError` whose traceback would show a secret loses its
    causes; any other such exception becomes a `ServiceError` that says `what` went wrong."""
    try:
        yield
    except Exception as error:
        if not shows_secret(error):
            raise
        if isinstance(error, RolloutError):
            raise error from None
        raise ServiceError(f"{what}: {type(error).__name__}: {error}") from None


_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*)?(?:Error|Exception|Fault)\b(?:\(\)$|:?\s*)")
"""The start of a traceback's last line; the whole line where the exception has no message."""

_LONGEST_CAUSE = 1000


def first_line(error: BaseException) -> str:
    """The first line of the error's message, redacted; the name of its class if the message is empty."""
    return redact(str(error).strip() or type(error).__name__).splitlines()[0]


def last_cause(text: str) -> str:
    """The message of the last exception in a traceback's text, as one redacted line. The last line of the text if it
    has no exception; empty if the message is."""
    lines = [line for line in redact(text).splitlines() if line.strip()] or [""]
    last = ([line for line in lines if _EXCEPTION.match(line)] or lines)[-1]
    said = _EXCEPTION.sub("", last).strip()
    return said if len(said) <= _LONGEST_CAUSE else said[: _LONGEST_CAUSE - 1] + "…"


class EpisodeEnd(Exception):
    """Ends the official orchestrator's loop early: a limit of ours was reached, or the policy broke the protocol.

    Not an error.
    """

    def __init__(self, reason: TerminationReason) -> None:
        super().__init__(reason)
        self.reason = reason


class RolloutError(Exception):
    """Base of every error that the caller can correct. `remedy` says how. Neither text shows a secret."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        problem, remedy = redact(problem), redact(remedy)
        super().__init__(f"{problem} {remedy}".strip())
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problem, self.remedy)


class ConfigError(RolloutError):
    """A setting is unknown or has a bad value. The message repeats what the user wrote, who may have put a key in the
    wrong place, so anything that looks like a key is left out."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(conceal(problem), conceal(remedy))


class TaskError(RolloutError):
    """An unknown domain, split or task id, or an impossible number of episodes."""


class CodecError(RolloutError):
    """The tokenizer or its chat template cannot be used, or failed the codec's proof."""


class Tau2Error(RolloutError):
    """τ²-bench is missing, is the wrong package, or does not support what was asked."""


class StorageError(RolloutError):
    """A trajectory file cannot be read or written. What was written before is kept."""


class ServiceError(RolloutError):
    """The service or its cluster cannot be started or reached."""


class BudgetReached(RolloutError):
    """A collection ended early, since its budget or the service's is spent. What had begun was delivered before."""


class TooFewKept(RolloutError):
    """A collection ended early: its filter kept too few of the groups that may begin. What it kept was delivered
    before."""


class Interrupted(ServiceError):
    """An actor of the service was not reached, or was started again during a call, which may or may not have had its
    effect."""


class WeightError(RolloutError):
    """Weights cannot be loaded: they are another model's, their version is too low, or an update is running."""


class TapeError(RolloutError):
    """The tape cannot be used: other settings, other tasks, or a folder that cannot be read or written."""


class UserSimulatorError(RolloutError):
    """The user simulator's endpoint cannot be used: it is down, or its key is missing."""
