"""What is said of an error, and which faults are worth another attempt."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import httpx
import litellm
import pytest
from ray.exceptions import RayActorError, RayTaskError

from rollout_service.collecting.request import check_episodes
from rollout_service.errors import (
    EpisodeEnd,
    EpisodeFault,
    Fault,
    FaultKind,
    TaskError,
    attach_origin,
    boundary,
    is_final,
    last_cause,
    traceback_of,
)
from rollout_service.policy.base import Generation, RequestError
from rollout_service.redaction import REDACTED, remember
from rollout_service.tau2 import api_errors
from rollout_service.termination import TerminationReason


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("Traceback (most recent call last):\n  File ...\nValueError: no such backend: x", "no such backend: x"),
        ("ValueError: first\nray.exceptions.RayTaskError: last one\n  of two lines", "last one"),
        ("RuntimeError: cause\n\nDuring handling …\n\nException: Capture failed: cause", "Capture failed: cause"),
        ("A deployment waits for resources.\n", "A deployment waits for resources."),
        ("A replica failed. Error:\nActorDiedError()", ""),
        ("RuntimeError: key sk-abcdefghijklmnop", "key [redacted]"),
        ("", ""),
    ],
)
def test_the_last_exception_of_a_traceback_is_its_cause(text, cause):
    assert last_cause(text) == cause


# Faults --------------------------------------------------------------------------------------------------------------


def raised(work: Callable[[], object]) -> Exception:
    """What `work` raises, as it is caught."""
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("it raised nothing")


def broken_call_of_ours() -> None:
    last_cause(None)  # type: ignore[arg-type]  # raises a TypeError deep in our own code


def attribute_of_ours() -> None:
    Generation.check(object())  # type: ignore[arg-type]


def of_others(error: BaseException) -> Callable[[], None]:
    def work() -> None:  # a module that is none of the service's, as τ² and litellm are
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "final"),
    [
        (broken_call_of_ours, True),
        (attribute_of_ours, True),
        (of_others(RequestError("input_ids is empty")), True),
        (of_others(TypeError("'NoneType' object is not subscriptable")), False),
        (of_others(AttributeError("half an answer")), False),
        (of_others(NameError("x")), False),
        (of_others(NotImplementedError("x")), False),
        (of_others(AssertionError("x")), False),
        (lambda: litellm.utils.token_counter(model=None, messages=7), False),
        (of_others(ValueError("no JSON")), False),
        (of_others(KeyError("choices")), False),
        (of_others(TimeoutError("no answer in 60 s")), False),
        (of_others(ConnectionError("replica died")), False),
        (of_others(OSError("disk")), False),
        (of_others(MemoryError()), False),
        (of_others(RayActorError()), False),
    ],
)
def test_a_programming_error_of_ours_and_a_refused_request_are_final_and_nothing_else_is(work, final):
    error = raised(work)
    assert is_final(error) is final
    with pytest.raises(EpisodeFault) as caught, boundary(FaultKind.POLICY):
        work()
    assert caught.value.fault.retryable is not final
    assert caught.value.fault.error == type(error).__name__


@pytest.mark.parametrize("kind", [TypeError, AttributeError, NameError, NotImplementedError, AssertionError])
def test_every_kind_of_programming_error_is_final_where_it_is_raised_in_our_own_code(kind):
    namespace = {"__name__": "rollout_service.some.module", "kind": kind}
    exec("def work():\n    raise kind('x')", namespace)
    assert is_final(raised(namespace["work"]))
    namespace["__name__"] = "rollout_service_of_somebody_else"
    assert not is_final(raised(namespace["work"]))


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (litellm.exceptions.AuthenticationError("bad key", "openai", "m"), True),
        (litellm.exceptions.NotFoundError("no such model", "m", "openai"), True),
        (ImportError("no module named x"), True),
        (litellm.exceptions.RateLimitError("slow down", "openai", "m"), False),
        (litellm.exceptions.Timeout("late", "m", "openai"), False),
        (litellm.exceptions.ServiceUnavailableError("down", "openai", "m"), False),
        (litellm.exceptions.ContextWindowExceededError("too long", "m", "openai"), False),
        (litellm.exceptions.ContentPolicyViolationError("no", "m", "openai"), False),
        (TypeError("half an answer"), False),
        (httpx.ReadError("lost"), False),
    ],
)
def test_what_an_api_always_refuses_is_final(error, final):
    with pytest.raises(EpisodeFault) as caught, boundary(FaultKind.EVALUATOR, api_errors.ends_episodes):
        raise error
    assert caught.value.fault.retryable is not final


def test_what_was_final_in_another_process_is_final_here():
    error = raised(broken_call_of_ours)
    attach_origin(error)
    arrived = RayTaskError("generate", "a traceback", pickle.loads(pickle.dumps(error))).as_instanceof_cause()
    with pytest.raises(EpisodeFault) as caught, boundary(FaultKind.POLICY):
        raise arrived
    fault = caught.value.fault
    assert (fault.error, fault.retryable) == ("TypeError", False)
    assert "in last_cause" in fault.traceback, "the stack of the other process"
    passing = raised(of_others(TypeError("half an answer")))
    attach_origin(passing)
    assert not is_final(pickle.loads(pickle.dumps(passing)))


def test_an_error_from_another_process_is_not_judged_by_where_this_one_waited_for_it():
    error = RayTaskError("run", "a traceback", TypeError("half an answer")).as_instanceof_cause()
    waiting = {"__name__": "actors.coordinator", "error": error}
    exec("def work():\n    raise error", waiting)
    assert not is_final(raised(waiting["work"]))


def test_errors_of_the_caller_and_ends_of_episodes_are_no_faults():
    with pytest.raises(EpisodeEnd), boundary(FaultKind.POLICY):
        raise EpisodeEnd(TerminationReason.MAX_TURNS)
    with pytest.raises(TaskError), boundary(FaultKind.POLICY):
        check_episodes(3, 2)


def test_a_fault_keeps_where_it_was_raised_and_from_what():
    def deep() -> None:
        try:
            raise ConnectionError("the engine is gone")
        except ConnectionError as error:
            raise ValueError("no answer") from error

    with pytest.raises(EpisodeFault) as caught, boundary(FaultKind.POLICY):
        deep()
    fault = caught.value.fault
    assert fault.message == "no answer"
    assert "ConnectionError: the engine is gone" in fault.traceback
    assert fault.traceback.endswith("ValueError: no answer")
    assert "in deep" in fault.traceback
    assert fault.traceback.count("test_errors.py") >= 2


def test_a_fault_that_is_raised_as_one_gets_its_stack_at_the_boundary_and_keeps_it_on_the_way():
    with pytest.raises(EpisodeFault) as caught, boundary(FaultKind.SERVICE), boundary(FaultKind.ENVIRONMENT):
        raise EpisodeFault(FaultKind.POLICY, "it is behind", error="Behind", retryable=False)
    fault = caught.value.fault
    assert (fault.kind, fault.error, fault.retryable) == (FaultKind.POLICY, "Behind", False)
    assert "raise EpisodeFault" in fault.traceback
    assert pickle.loads(pickle.dumps(caught.value)).fault == fault


def test_the_stack_of_an_error_from_another_process_is_that_of_the_other_process():
    remote = 'Traceback (most recent call last):\n  File "/x/engine.py", line 7, in sample\n    f()\nValueError: full'
    error = RayTaskError("generate", remote, ValueError("full")).as_instanceof_cause()
    fault = Fault.of(FaultKind.POLICY, raised(of_others(error)))
    assert (fault.error, fault.message) == ("ValueError", "full")
    assert 'File "/x/engine.py", line 7, in sample' in fault.traceback
    assert "\x1b" not in fault.traceback


def test_a_stack_is_bounded_without_its_secrets_and_ends_with_the_exception():
    remember(key := "-".join(["staple", "battery"]))
    fault = Fault.of(FaultKind.POLICY, raised(of_others(ValueError(key + "x" * 5000 + key + "y" * 5000 + key))))
    assert len(fault.traceback) == 8000
    assert fault.traceback.endswith(f"yyy{REDACTED}")
    assert "staple" not in fault.traceback
    assert fault.message.startswith(REDACTED)
    assert Fault(FaultKind.POLICY, "E", "m", True, fault.traceback).traceback == fault.traceback


def test_a_stack_is_not_part_of_the_line_that_shows_a_fault():
    fault = Fault.of(FaultKind.POLICY, raised(of_others(ValueError("full"))))
    assert "Traceback" not in repr(fault)
    assert traceback_of(ValueError("x")) == "ValueError: x"
