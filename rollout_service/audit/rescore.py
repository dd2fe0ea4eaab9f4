"""Rescore: stored trajectories scored again, under the tasks of the installed τ²-bench.

Invariant: a new reward is the official evaluator's, on a replay of the stored messages. Tokens and messages stay as
they were. What depends on score or task is found again: the user's flaws and the facts of turns. Nothing is guessed: a
trajectory that cannot be replayed or scored gets no reward, and has its reason. No judge is asked, so a reward that a
judge took part in is kept where its task is the same, and not scored where it is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rollout_service.config.tasks import Retrieval
from rollout_service.errors import RolloutError
from rollout_service.record import user_flaws
from rollout_service.record.trajectory import TokenSegment, Trajectory
from rollout_service.record.turn_facts import TurnFacts


@dataclass(frozen=True, slots=True)
class Rescored:
    """One trajectory."""

    before: Trajectory
    after: Trajectory | None
    """With the new reward; as it was, where nothing is to be scored. None: it cannot be scored."""
    problem: str = ""
    """Why there is no trajectory."""

    @property
    def task_changed(self) -> bool:
        """Whether the task's contents are known to be others than those that were played."""
        made = self.before.provenance.task_hash
        return bool(made) and self.after is not None and made != self.after.provenance.task_hash

    @property
    def reward_changed(self) -> bool:
        """Whether the reward is another one."""
        return self.after is not None and self.before.reward != self.after.reward


def rescore(trajectories: Iterable[Trajectory]) -> Iterator[Rescored]:
    """Score each trajectory again. One without a reward stays as it is."""
    for trajectory in trajectories:
        if trajectory.reward is None:
            yield Rescored(trajectory, trajectory)
            continue
        try:
            yield Rescored(trajectory, _scored(trajectory))
        except RolloutError as error:
            yield Rescored(trajectory, None, error.problem)
        except Exception as error:  # a record that cannot be replayed must not hide those after it
            yield Rescored(trajectory, None, f"{type(error).__name__}: {error}".splitlines()[0])


def _scored(trajectory: Trajectory) -> Trajectory:
    """The trajectory with the reward that the installed task gives it.

    Raises:
        TaskError: the installed τ²-bench has no such task.
        ValueError: its messages cannot be replayed, or a judge would have to be asked.
    """
    from rollout_service.tau2 import compat, domain, environment, evaluation, messages, replay, tasks, turn_facts

    named, made = trajectory.task, trajectory.provenance
    [reference] = tasks.references(named.domain, named.split, [named.task_id])
    task = tasks.get(reference)
    solo = made.agent == "solo"
    policy = domain.get(named.domain, Retrieval(**made.retrieval) if made.retrieval else None).content_hash(solo)
    provenance = dataclasses.replace(
        made,
        evaluator="official",
        task_hash=tasks.hash_of(reference),
        domain_hash=policy if made.domain_hash == policy else "",  # it was played under a policy that is not installed
        tau2_distribution=compat.DISTRIBUTION,
        tau2_version=compat.VERSION,
    )
    if evaluation.is_judged(task, made.evaluation):
        same = (made.task_hash, made.tau2_distribution, made.tau2_version)
        if same != (provenance.task_hash, compat.DISTRIBUTION, compat.VERSION):
            raise ValueError("a judge takes part in its reward, and the task is not known to be the same")
        return trajectory
    conversation = [messages.from_record(record) for record in trajectory.messages]
    info = evaluation.evaluate(
        conversation, task, named.domain, trajectory.termination_reason, evaluation_type=made.evaluation, solo=solo
    )
    record, reward_info = [messages.to_record(message) for message in conversation], info.model_dump(mode="json")
    part = None if trajectory.user_flaws is None else str(task.user_scenario)
    world = replay.replayed(task, named.domain, conversation, solo)
    facts = turn_facts.found(trajectory.turns, conversation, record, task, world.wrote)
    return dataclasses.replace(
        trajectory,
        task=reference,
        reward=float(info.reward),
        reward_info=reward_info,
        segments=_with_facts(trajectory, facts),
        messages=record,
        user_flaws=user_flaws.looked_for(record, trajectory.termination_reason, part, reward_info),
        database_hashes=environment.database_hashes(world),
        provenance=provenance,
    )


def _with_facts(trajectory: Trajectory, facts: Sequence[TurnFacts]) -> list[TokenSegment]:
    """The trajectory's segments, with these facts of its turns."""
    if [turn.facts for turn in trajectory.turns] == facts:
        return trajectory.segments
    each = iter(facts)
    return [
        dataclasses.replace(segment, turns=[dataclasses.replace(turn, facts=next(each)) for turn in segment.turns])
        for segment in trajectory.segments
    ]
