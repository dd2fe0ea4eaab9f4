"""What the installed τ²-bench says of a trajectory: its task, its domain, and the prompt and tools of its agent.

Invariant: it is what the episode was played with. Where the installed contents are others, or nobody can tell, the
trajectory is refused.
"""

from __future__ import annotations

import functools
from typing import Any

from rollout_service.config.tasks import Retrieval
from rollout_service.errors import StorageError, TaskError
from rollout_service.record.trajectory import Provenance, TaskRef, Trajectory


def check_installed(trajectory: Trajectory) -> None:
    """Check that the installed τ²-bench has the task and the domain that the episode was played with.

    Raises:
        StorageError: the policy or the tools are others, or the record is too old to tell and of another release.
        TaskError: there is no such task, or its contents changed.
    """
    from rollout_service.tau2 import compat, tasks

    made = trajectory.provenance
    is_release = (made.tau2_distribution, made.tau2_version) == (compat.DISTRIBUTION, compat.VERSION)
    here = domain_of(trajectory).content_hash(made.agent == "solo")
    if made.domain_hash != here if made.domain_hash else not is_release:
        raise StorageError(
            f"Trajectory {trajectory.trajectory_id!r} was played on {made.tau2_distribution} {made.tau2_version}, and "
            f"the policy or the tools of {trajectory.task.domain} may differ in the installed {compat.DISTRIBUTION} "
            f"{compat.VERSION}.",
            "Export it where the release is installed that played it.",
        )
    if made.task_hash != (task := tasks.hash_of(trajectory.task)) if made.task_hash else not is_release:
        raise TaskError(
            f"Trajectory {trajectory.trajectory_id!r}: its task {trajectory.task} has the hash "
            f"{made.task_hash or 'that nobody recorded'}, and the installed one {task}: the contents differ.",
            "Score the file again with `rollout-service rescore`, or restore the tasks.",
        )


def domain_of(trajectory: Trajectory) -> Any:
    """The trajectory's domain, as `rollout_service.tau2.domain` gives it."""
    from rollout_service.tau2 import domain

    return domain.get(trajectory.task.domain, _retrieval(trajectory.provenance))


def policy_text(trajectory: Trajectory) -> str:
    """The domain's policy, for no task in particular."""
    text: str = domain_of(trajectory).original(solo=trajectory.provenance.agent == "solo").get_policy()
    return text


def guidelines(trajectory: Trajectory) -> str:
    """The guidelines that τ² gives the user simulator's model."""
    from rollout_service.tau2 import compat, tasks

    return compat.user_guidelines(domain_of(trajectory).user_tools(tasks.get(trajectory.task)) is not None)


def task_record(task: TaskRef) -> dict[str, Any]:
    """The task as τ² writes it."""
    from rollout_service.tau2 import tasks

    record: dict[str, Any] = tasks.get(task).model_dump(mode="json")
    return record


def tools(trajectory: Trajectory) -> list[dict[str, Any]]:
    """OpenAI schemas of the agent's tools. Shared: do not change them."""
    schemas: list[dict[str, Any]] = domain_of(trajectory).tool_schemas(trajectory.provenance.agent == "solo")
    return schemas


def system_messages(trajectory: Trajectory) -> list[dict[str, Any]]:
    """The chat messages with which the agent's prompts begin."""
    made = trajectory.provenance
    return list(_system_messages(trajectory.task, made.agent, _retrieval(made)))


def _retrieval(made: Provenance) -> Retrieval | None:
    return Retrieval(**made.retrieval) if made.retrieval else None


@functools.lru_cache(maxsize=256)
def _system_messages(task: TaskRef, kind: str, retrieval: Retrieval | None) -> list[dict[str, Any]]:
    from rollout_service.tau2 import agent, domain, messages, tasks

    shared, whole, solo = domain.get(task.domain, retrieval), tasks.get(task), kind == "solo"
    policy = shared.original(solo=solo, task=whole).get_policy()
    talker = agent.make(kind, shared.agent_tools(solo), policy, whole, _takes_no_turn)
    return [chat for item in talker.get_init_state().system_messages for chat in messages.to_chat(item)]


def _takes_no_turn(_: Any) -> Any:
    raise AssertionError("an agent that only gives its prompt takes no turn")
