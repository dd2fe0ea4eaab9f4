"""Scoring with the official evaluator.

Invariant: the reward is what τ²'s `evaluate_simulation` gives for the messages. Nothing is added, clipped or defaulted.
If an assertion about the end state raises, τ² gives no reward. Then the assertion counts as not met, and `info` says
so. In mode `official` the evaluator replays the messages; in mode `fast` it sees the episode's own environment
(`rollout_service.tau2.fast_evaluation`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import rollout_service.logs as logs
from rollout_service.config import Evaluation
from rollout_service.errors import EpisodeFault, FaultKind, Tau2Error
from rollout_service.redaction import redact, safe_cause
from rollout_service.tau2 import compat, environment, fast_evaluation
from rollout_service.tau2.domain import Domain, EndState

_log = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class Score:
    """How an episode was scored."""

    reward_info: compat.RewardInfo
    evaluator: str
    """`official` or `fast`."""


def score(
    orchestrator: compat.Orchestrator,
    end: EndState,
    messages: list[compat.Message],
    task: compat.Task,
    domain: Domain,
    termination_reason: str,
    config: Evaluation,
    *,
    solo: bool = False,
) -> Score:
    """Score an episode as `config.mode` says.

    Args:
        orchestrator: the episode's, after its run; `end` is the state that its environment is in.
        messages: copies of its messages, as they go into the record.
        termination_reason: as for `evaluate`.

    Raises:
        Tau2Error: in mode `check` the fast and the official score differ; or the domain's files changed, so that the
            official way would score with other data than the episode was played on.
        ValueError: as `evaluate`.
    """

    def official(kind: str) -> compat.RewardInfo:
        domain.files.check_unchanged()
        return evaluate(messages, task, domain.name, termination_reason, evaluation_type=kind, solo=solo)

    def fast(kind: str) -> compat.RewardInfo:
        gold = functools.partial(fast_evaluation.gold_hashes, domain, task)
        token = fast_evaluation.case.set(fast_evaluation.Case(orchestrator.environment, end.hashes, gold, messages))
        try:
            return evaluate(
                messages,
                task,
                domain.name,
                termination_reason,
                evaluation_type=kind,
                solo=solo,
                environments=fast_evaluation.DOMAIN,
            )
        finally:
            fast_evaluation.case.reset(token)

    may_be_fast = domain.is_fast and fast_evaluation.leads_to(messages, end, orchestrator.trajectory, solo=solo)
    if config.mode == "official" or not may_be_fast:
        return Score(official(config.type), "official")
    if config.mode == "fast":
        return Score(fast(config.type), "fast")
    # A judge is asked once, because it may answer differently; the two evaluators differ in the environment only.
    judged = is_judged(task, config.type)
    kind = "env" if judged else config.type
    ours, theirs = fast(kind), official(kind)
    _check_same_score(ours, theirs, task, domain)
    return Score(official(config.type) if judged else theirs, "official")


def _check_same_score(fast: compat.RewardInfo, official: compat.RewardInfo, task: compat.Task, domain: Domain) -> None:
    differing = [name for name in type(fast).model_fields if getattr(fast, name) != getattr(official, name)]
    if differing:
        shown = "; ".join(
            f"{name} is {getattr(fast, name)}, officially {getattr(official, name)}" for name in differing
        )
        raise Tau2Error(
            f"evaluation.mode check: fast and official scores differ on task {task.id!r} of {domain.name}: {shown}.",
            "Set evaluation.mode to official, and report the task and its messages.",
        )


def is_judged(task: compat.Task, kind: str) -> bool:
    """Whether a language model takes part in the score. Asking again would cost money and might give another score."""
    criteria = task.evaluation_criteria
    basis = [str(part.value) for part in criteria.reward_basis] if criteria and criteria.reward_basis else []
    return "nl_assertions" in kind or (kind == "all" and "NL_ASSERTION" in basis)


def evaluate(
    messages: list[compat.Message],
    task: compat.Task,
    domain: str,
    termination_reason: str,
    *,
    evaluation_type: str = "all",
    solo: bool = False,
    environments: str | None = None,
) -> compat.RewardInfo:
    """The official `RewardInfo` of a conversation.

    An assertion about the end state that raises counts as not met, and is listed in `info["assertions_raised"]`.

    Args:
        termination_reason: one of τ²'s, or one of ours. τ² scores only conversations that a side ended. Every other
            reason is passed on as `max_steps`, which τ² scores 0.
        environments: name in τ²'s registry of the environments to evaluate on. None: new ones of the domain.

    Raises:
        ValueError: the judge left out assertions, which τ² would count as met.
        EpisodeFault: an assertion also raises after the task's gold actions, so it says nothing about the messages.
    """
    known = {reason.value for reason in compat.TerminationReason}
    reason = termination_reason if termination_reason in known else compat.TerminationReason.MAX_STEPS.value
    simulation = compat.SimulationRun(
        id="", task_id=task.id, start_time="", end_time="", duration=0.0, termination_reason=reason, messages=messages
    )
    with environment.noting_assertions() as raised:
        reward_info = compat.evaluate_simulation(
            simulation=simulation,
            task=task,
            evaluation_type=compat.EvaluationType(evaluation_type),
            solo_mode=solo,
            domain=environments or environment.registered(domain),
        )
    if raised:
        _check_assertions(raised, task, domain)
        for assertion, error in raised:
            _log.info(
                "Task %s of %s: the assertion %s raised, so it counts as not met: %s: %s",
                task.id,
                domain,
                assertion.func_name,
                type(error).__name__,
                error,
            )
        reward_info.info = {**(reward_info.info or {}), "assertions_raised": [_note(*each) for each in raised]}
    asked = (task.evaluation_criteria.nl_assertions or []) if task.evaluation_criteria else []
    graded = reward_info.nl_assertions
    if graded is not None and len(graded) < len(asked):
        raise ValueError(f"the judge graded {len(graded)} of {len(asked)} assertions")
    return reward_info


def _note(assertion: Any, error: Exception) -> dict[str, Any]:
    return {
        "function": assertion.func_name,
        "arguments": assertion.arguments,
        "error": redact(f"{type(error).__name__}: {error}", limit=500),
    }


def _check_assertions(raised: environment.Raised, task: compat.Task, domain: str) -> None:
    """Check that the assertions do not raise after the task's gold actions too: then the task is at fault, not the
    policy.

    Raises:
        EpisodeFault: an assertion raises there too.
    """
    gold = fast_evaluation.play_gold(environment.make(domain, task=task), task)
    for assertion, _ in raised:
        try:
            gold.run_env_assertion(assertion, raise_assertion_error=False)
        except Exception as error:
            problem = f"{assertion.func_name} of {domain}'s task {task.id!r} raises after the gold actions too: {error}"
            raise EpisodeFault(
                FaultKind.EVALUATOR, problem, error=type(error).__name__, retryable=False
            ) from safe_cause(error)
