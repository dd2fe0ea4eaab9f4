"""Enactment: one conversation from given steps, without a model and without tokens.

Invariant: orchestrator, environment, user and evaluator are those of a collection's episodes. Only the policy is
missing: its turns are given. A judge is never asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from rollout_service.chat.parsed_turn import ChatMessage, ParsedCall, ParsedTurn
from rollout_service.config import Evaluation, User
from rollout_service.tau2 import agent, compat, domain, evaluation, gold
from rollout_service.tau2.deadline import Deadline
from rollout_service.tau2.orchestrator import Orchestrator
from rollout_service.tau2.scripted_user import ScriptedUser

_MOST_SECONDS = 600.0
_MOST_STEPS, _MOST_ERRORS = 400, 50
_JUDGED = "NL_ASSERTION"


def reward_parts(task: compat.Task) -> list[str]:
    """The parts of the task's reward, as τ² names them: `DB`, `ENV_ASSERTION`, `COMMUNICATE`, …"""
    criteria = task.evaluation_criteria
    return [str(part.value) for part in criteria.reward_basis or []] if criteria else []


def enact(task: compat.Task, shared: domain.Domain, steps: Sequence[gold.Step], *, user_acts: bool) -> evaluation.Score:
    """Play the steps and score the conversation. The last step is repeated until the user stops.

    Args:
        user_acts: whether the user does its part of the gold actions; otherwise it stops after the policy's first
            words.

    Returns:
        The official score, in which the judge's part of the reward is left out.

    Raises:
        EpisodeFault: the task cannot be scored, see `evaluation.evaluate`.
    """
    waiting = list(steps)

    def take_turn(_: Sequence[ChatMessage]) -> ParsedTurn:
        step = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        calls = [ParsedCall(name, arguments) for name, arguments in step.calls]
        return ParsedTurn("" if calls else step.text, None, calls)

    world = shared.environment(task=task)
    script = task if user_acts else _without(task, actions=[])
    user = ScriptedUser(script, shared.user_tools(task), User(), 0, Deadline(_MOST_SECONDS))
    orchestrator = Orchestrator(
        domain=shared.name,
        agent=agent.make("llm", shared.agent_tools(False), world.get_policy(), task, take_turn),
        user=user,
        environment=world,
        task=task,
        max_steps=_MOST_STEPS,
        max_errors=_MOST_ERRORS,
        seed=0,
    )
    simulation = orchestrator.run()
    basis = [part for part in task.evaluation_criteria.reward_basis or [] if part.value != _JUDGED]
    return evaluation.score(
        orchestrator,
        shared.end_state(world),
        simulation.messages,
        _without(task, reward_basis=basis),
        shared,
        str(simulation.termination_reason.value),
        Evaluation(),
    )


def _without(task: compat.Task, **criteria: object) -> compat.Task:
    """The task with other evaluation criteria."""
    changed = task.evaluation_criteria.model_copy(update=criteria)
    return task.model_copy(update={"evaluation_criteria": changed})
