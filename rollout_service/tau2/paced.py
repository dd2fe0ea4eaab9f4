"""Paced: a request to a language model's API that waits for its turn, and tells the gate how it ended.

Invariant: the time for the answer counts from the request's start, not from its place in the queue. What the API says
in the headers of its answer reaches the gate, whatever becomes of the answer.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from rollout_service.errors import EpisodeEnd
from rollout_service.pacing import advice
from rollout_service.pacing.controller import Result
from rollout_service.pacing.gate import Gate
from rollout_service.tau2 import api_errors
from rollout_service.tau2.deadline import Deadline
from rollout_service.termination import TerminationReason

T = TypeVar("T")

_heard: ContextVar[list[Any] | None] = ContextVar("heard", default=None)
"""Where the answers that litellm gets within a request are noted."""


class NoPlace(EpisodeEnd):
    """The episode's time ran out while its request waited for its turn."""


def listening(completion: Callable[..., Any]) -> Callable[..., Any]:
    """`litellm.completion`, whose answers `ask` can see."""

    def heard(*args: Any, **kwargs: Any) -> Any:
        response = completion(*args, **kwargs)
        if (answers := _heard.get()) is not None:
            answers.append(response)
        return response

    return heard


def ask(gate: Gate | None, deadline: Deadline, request: Callable[[], T], seconds: float) -> T:
    """Run `request` in a thread of its own when it is its turn, and return its result.

    Args:
        gate: None: it is always its turn.
        seconds: most time for the request itself.

    Raises:
        TimeoutError: it took longer than `seconds`.
        NoPlace: the episode's time ran out before it was the request's turn.
        EpisodeEnd: the episode's time ran out later, or the episode was cancelled.
    """
    if gate is None:
        return deadline.bound(request, seconds)
    answers: list[Any] = []

    def run() -> T:
        _heard.set(answers)  # a new thread has a context of its own
        return request()

    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(gate.place(deadline))
        except EpisodeEnd as end:
            if end.reason == TerminationReason.WALL_TIME:
                raise NoPlace(end.reason) from None
            raise
        try:
            result = deadline.bound(run, seconds)
        except EpisodeEnd:
            raise
        except Exception as error:
            place.result = _result(time.monotonic() - place.started, answers, error)
            raise
        place.result = _result(time.monotonic() - place.started, answers, None)
        return result


def _result(seconds: float, answers: list[Any], error: Exception | None) -> Result:
    if answers:
        headers = getattr(answers[-1], "_response_headers", None) or {}
        tokens = getattr(getattr(answers[-1], "usage", None), "total_tokens", None) or 0
        return Result("answered", seconds, advice.read(headers), int(tokens))
    if error is None:  # τ²'s code did not use litellm for it
        return Result("answered", seconds)
    said = advice.read(api_errors.headers(error))
    if api_errors.is_rate_limit(error):
        return Result("refused", seconds, said)
    return Result("failed" if api_errors.is_overload(error) else "answered", seconds, said)
