"""Answers: what the replicas answered when all of them were asked.

Invariant: the error of a replica that lives is never taken for an answer.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from rollout_service.errors import RolloutError, ServiceError, WeightError, last_cause
from rollout_service.policy.replicas import ReplicaState


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


def check_model(states: Sequence[ReplicaState], model: str, application: str) -> None:
    """Check that the replicas serve this model, or do not say which.

    Raises:
        ServiceError: they serve another one.
    """
    other = next((state.serves for state in states if state.serves not in ("", model)), None)
    if other is not None:
        raise ServiceError(
            f"policy.application: the replicas of {application!r} serve {other}, not {model}: trajectories would name "
            "a model that did not sample them.",
            "Set policy.engine and policy.model as the application has them, or name another application.",
        )


def check_members(group: str, members: Set[str], states: Sequence[ReplicaState]) -> None:
    """Check that the replicas that run are the members of the process group, and can use it.

    Args:
        states: of the replicas that run.

    Raises:
        WeightError: they are not; names them.
    """
    later = sorted({state.replica for state in states} - members)
    wrong = [*missing(group, members, states), *(f"{name} started later" for name in later)]
    if wrong:
        raise WeightError(
            f"The process group {group!r} is not that of the replicas that run: {'; '.join(wrong)}.",
            "Close the group and make another with client.weight_group().",
        )


def missing(group: str, members: Set[str], states: Sequence[ReplicaState]) -> list[str]:
    """The members that can no longer use the process group, each with the reason."""
    died = sorted(members - {state.replica for state in states})
    lost = {state.replica: state.lost_group[1] for state in states if state.lost_group and state.lost_group[0] == group}
    return [*(f"{name} died" for name in died), *(f"{name} left it: {why}" for name, why in sorted(lost.items()))]
