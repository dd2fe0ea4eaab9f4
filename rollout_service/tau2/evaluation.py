"""Scoring with the official evaluator.

Invariant: the reward is what τ²'s `evaluate_simulation` gives for the messages; nothing is added, clipped or defaulted.
`official` has it replay the messages; `fast` shows it the episode's own environment (`rollout_service.tau2.played`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from rollout_service.config import Evaluation, secret
from rollout_service.errors import Tau2Error
from rollout_service.tau2 import compat, played
from rollout_service.tau2.domain import Domain, EndState

_JUDGE_DEFAULTS = {"timeout": 120.0, "max_retries": 5}
"""Of each request to the judge; `judge.arguments` may say otherwise. litellm would wait ten minutes, three times."""


def configure_judge(evaluation: Evaluation) -> list[str]:
    """Point τ²'s NL-assertion judge, which reads module constants, at the configured model. Once per process.

    Returns:
        The secrets that error messages must not show.

    Raises:
        ConfigError: the key's environment variable is not set.
    """
    judge = evaluation.judge
    arguments = {**_JUDGE_DEFAULTS, **judge.arguments}
    key = secret(judge.api_key_var, "evaluation.judge.api_key_var")
    if judge.base_url:
        arguments["api_base"] = judge.base_url
    if key or judge.base_url:
        arguments["api_key"] = key or "none"
    module = compat.evaluator_nl_assertions
    if judge.model:
        module.DEFAULT_LLM_NL_ASSERTIONS = judge.model
    module.DEFAULT_LLM_NL_ASSERTIONS_ARGS = arguments
    return [key] if key else []


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
        Tau2Error: in mode `check` fast and official differ; or the domain's files changed, and official would score
            with others than those that the episode was played on.
        ValueError: as `evaluate`.
    """

    def official(kind: str) -> compat.RewardInfo:
        domain.files.check()
        return evaluate(messages, task, domain.name, termination_reason, evaluation_type=kind, solo=solo)

    def fast(kind: str) -> compat.RewardInfo:
        gold = functools.partial(played.gold_hashes, domain, task)
        token = played.case.set(played.Case(orchestrator.environment, end.hashes, gold, messages))
        try:
            return evaluate(messages, task, played.DOMAIN, termination_reason, evaluation_type=kind, solo=solo)
        finally:
            played.case.reset(token)

    may_be_fast = domain.is_fast and played.leads_to(messages, end, orchestrator.trajectory, solo=solo)
    if config.mode == "official" or not may_be_fast:
        return Score(official(config.type), "official")
    if config.mode == "fast":
        return Score(fast(config.type), "fast")
    # A judge is asked once: it does not say the same twice, and the two evaluators differ in the environment only.
    judged = is_judged(task, config.type)
    kind = "env" if judged else config.type
    ours, theirs = fast(kind), official(kind)
    _refuse_difference(ours, theirs, task, domain)
    return Score(official(config.type) if judged else theirs, "official")


def _refuse_difference(fast: compat.RewardInfo, official: compat.RewardInfo, task: compat.Task, domain: Domain) -> None:
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
    """Whether a language model has a say in the score: asking it again would cost money and might differ."""
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
) -> compat.RewardInfo:
    """The official `RewardInfo` of a conversation.

    Args:
        termination_reason: τ²'s, or one of ours. τ² scores only conversations that a side ended; every other reason
            counts as `max_steps` there, which it scores 0.

    Raises:
        ValueError: the judge left assertions out. τ² would take them as met.
    """
    known = {reason.value for reason in compat.TerminationReason}
    reason = termination_reason if termination_reason in known else compat.TerminationReason.MAX_STEPS.value
    simulation = compat.SimulationRun(
        id="", task_id=task.id, start_time="", end_time="", duration=0.0, termination_reason=reason, messages=messages
    )
    reward_info = compat.evaluate_simulation(
        simulation=simulation,
        task=task,
        evaluation_type=compat.EvaluationType(evaluation_type),
        solo_mode=solo,
        domain=domain,
    )
    asked = (task.evaluation_criteria.nl_assertions or []) if task.evaluation_criteria else []
    graded = reward_info.nl_assertions
    if graded is not None and len(graded) < len(asked):
        raise ValueError(f"the judge graded {len(graded)} of {len(asked)} assertions")
    return reward_info
