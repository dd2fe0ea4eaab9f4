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


def check_cumem(values: Sequence[str | None]) -> None:
    """Check that NCCL is set up alike in all replicas.

    Args:
        values: of `NCCL_CUMEM_ENABLE` in each.

    Raises:
        WeightError: it is not.
    """
    if len(set(values)) > 1:
        found = ", ".join(sorted({str(value) for value in values}))
        raise WeightError(
            f"NCCL_CUMEM_ENABLE differs between the replicas: {found}.", "Set it for all, in policy.env_vars."
        )


def check_members(group: str, members: Set[str], there: Set[str]) -> None:
    """Check that the replicas that run are the members of the process group.

    Raises:
        WeightError: they are not.
    """
    if members != there:
        raise WeightError(
            f"The process group {group!r} is not that of the replicas that run: {len(there - members)} of "
            f"{len(there)} started later, and {len(members - there)} of the group are gone.",
            "Close the group and make another with client.weight_group().",
        )
