"""Answers: what the replicas answered when all of them were asked.

Invariant: the error of a replica that lives is never taken for an answer.
"""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from rollout_service.errors import RolloutError, ServiceError, last_cause


def living(answers: list[Any]) -> list[Any]:
    """The answers of the replicas that live.

    Raises:
        RolloutError: the first one among the answers.
        ServiceError: another error is among them, or no replica lives.
    """
    living = [answer for answer in answers if not isinstance(answer, RayActorError)]
    answers = living or answers  # a lost replica is being replaced, and its successor starts with what the others have
    errors = [_cause(answer) for answer in answers if isinstance(answer, BaseException)]
    if errors:
        raise next((error for error in errors if isinstance(error, RolloutError)), None) or ServiceError(
            f"{len(errors)} of {len(answers)} replicas failed; the first with: {text(errors[0])}",
            "See the replicas' logs.",
        )
    return answers


def text(error: BaseException) -> str:
    """What the replica said when it failed."""
    cause = _cause(error)
    return f"{type(cause).__name__}: {last_cause(str(cause)) or '-'}"


def _cause(error: BaseException) -> BaseException:
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) else error
