"""Scoring with the official evaluator.

Invariant: the reward is what τ²'s `evaluate_simulation` gives for the messages; nothing is added, clipped or defaulted.
"""

from __future__ import annotations

from rollout_service.config import Evaluation, secret
from rollout_service.tau2 import compat

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
