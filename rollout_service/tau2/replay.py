"""Replays a stored trajectory's messages in a fresh τ² environment and scores them again.

Invariant: the result does not depend on how the trajectory was made. Only its task and its messages are read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rollout_service.record import schema
from rollout_service.record.trajectory import Trajectory
from rollout_service.record.turn_facts import TurnFacts
from rollout_service.tau2 import compat, environment, evaluation, messages, tasks, turn_facts

_PARTS = {
    "env": ("db_check", "env_assertions"),
    "action": ("action_checks",),
    "communicate": ("communicate_checks",),
}
"""The parts of a `RewardInfo` that come from each evaluation type without a language model."""


def differences(trajectory: Trajectory) -> list[str]:
    """How the record differs from a replay of its messages: reward, its parts, the database hashes, and what each turn
    did.

    Raises:
        TaskError: the installed τ²-bench has no such task.
        ValueError: τ² cannot replay the messages, because a tool answers differently.
    """
    made = trajectory.provenance
    found = []
    if not is_installed(trajectory):
        return [
            f"made with {made.tau2_distribution} {made.tau2_version}, but {compat.DISTRIBUTION} {compat.VERSION} is "
            "installed, whose tasks may differ"
        ]
    task = tasks.get(trajectory.task)
    solo = made.agent == "solo"
    conversation = [messages.from_record(record) for record in trajectory.messages]
    world = replayed(task, trajectory.task.domain, conversation, solo)
    if (hashes := environment.database_hashes(world)) != trajectory.database_hashes:
        found.append(f"the databases end as {hashes}, recorded {trajectory.database_hashes}")
    found += _facts(trajectory, conversation, task, world.wrote)
    if trajectory.reward is None:
        return found
    recorded = trajectory.reward_info or {}

    def again(kind: str) -> dict[str, Any]:
        return evaluation.evaluate(
            conversation, task, trajectory.task.domain, trajectory.termination_reason, evaluation_type=kind, solo=solo
        ).model_dump(mode="json")

    if evaluation.is_judged(task, made.evaluation):
        if made.evaluation != "nl_assertions":
            found += [text for kind, parts in _PARTS.items() for text in _compare(again(kind), recorded, parts)]
        return found
    scored = again(made.evaluation)
    if trajectory.reward != scored["reward"]:
        found.append(f"the reward is {scored['reward']}, recorded {trajectory.reward}")
    return found + _compare(scored, recorded, tuple(scored))


def _compare(scored: dict[str, Any], recorded: dict[str, Any], parts: tuple[str, ...]) -> list[str]:
    differing = [part for part in parts if scored[part] != recorded.get(part)]
    return [f"{part} is {scored[part]}, recorded {recorded.get(part)}" for part in differing]


def is_installed(trajectory: Trajectory) -> bool:
    """Whether the τ²-bench that made the trajectory is the installed one."""
    made = trajectory.provenance
    return (made.tau2_distribution, made.tau2_version) == (compat.DISTRIBUTION, compat.VERSION)


def differing_facts(trajectory: Trajectory) -> list[str]:
    """How the facts of the turns differ from those that task and messages show. Nothing is replayed, so nothing is said
    of writes. Empty also if the record has no facts, or another τ²-bench made it.

    Raises:
        TaskError: the installed τ²-bench has no such task.
    """
    if not is_installed(trajectory) or all(turn.facts == TurnFacts() for turn in trajectory.turns):
        return []
    conversation = [messages.from_record(record) for record in trajectory.messages]
    return _facts(trajectory, conversation, tasks.get(trajectory.task), None)


def _facts(
    trajectory: Trajectory, conversation: list[compat.Message], task: compat.Task, wrote: Collection[str] | None
) -> list[str]:
    turns = trajectory.turns
    shown = turn_facts.found(turns, conversation, trajectory.messages, task, wrote)
    return [
        f"turn {number}: {name} is {again}, recorded {recorded}"
        for number, (turn, facts) in enumerate(zip(turns, shown, strict=True))
        for name, again in schema.shallow(facts).items()
        if again is not None and (recorded := getattr(turn.facts, name)) not in (None, again)
    ]


def replayed(task: compat.Task, domain: str, conversation: list[compat.Message], solo: bool) -> compat.Environment:
    """An official environment after the conversation. As in play, it is first brought to the task's initial state,
    which may hold messages.

    Raises:
        ValueError: a tool answers differently.
    """
    world = environment.make(domain, solo=solo, task=task)
    initial = task.initial_state
    given = len(initial.message_history or []) if initial else 0
    world.set_state(
        initialization_data=initial.initialization_data if initial else None,
        initialization_actions=initial.initialization_actions if initial else None,
        message_history=conversation[:given],
    )
    world.wrote.clear()
    world.set_state(None, None, conversation[given:])
    return world
