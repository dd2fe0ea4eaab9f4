"""UserReview: τ²'s own review of the user simulator's part in an episode, by a language model.

Invariant: a review never changes an episode, and never loses one. Where there is none, the record says why. Which
episodes are reviewed follows from their identity alone, so a retry and a resume choose the same ones. The prompt is
upstream's own, and so is what reads the answer.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import rollout_service.logs as logs
import rollout_service.tau2.lazy_llm_utils as lazy_llm_utils
from rollout_service.collecting.request import EpisodeRequest
from rollout_service.config.review import Review
from rollout_service.errors import ConfigError, EpisodeEnd, EpisodeFault, first_line
from rollout_service.record.trajectory import JudgeUsage, UserReview
from rollout_service.redaction import redact
from rollout_service.tau2 import compat, grader
from rollout_service.tau2.grader import Grader
from rollout_service.termination import TerminationReason

_log = logs.logger(__name__)


def check(settings: Review, *, needs_key: bool = True) -> None:
    """Check that episodes can be reviewed, if any are to be. No model is asked.

    Args:
        needs_key: False where a tape answers.

    Raises:
        ConfigError: the installed τ²-bench has no reviewer, or the key's environment variable is not set.
    """
    if not settings.is_on:
        return
    if not compat.UPSTREAM:
        raise ConfigError(
            f"user.review.share is {settings.share:g}, but {compat.DISTRIBUTION} {compat.VERSION} has no reviewer.",
            "Install upstream τ²-bench (docs/configuration.md has the line), or leave out user.review.",
        )
    grader.arguments(settings, "user.review", needs_key=needs_key)


def is_chosen(share: float, request: EpisodeRequest) -> bool:
    """Whether the episode is one of those that are reviewed. A larger share holds all of a smaller one's."""
    task = request.task
    identity = f"review:{task.domain}:{task.task_id}:{request.seed}:{request.sample_index}"
    return int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8]) < share * 2**64


def review(
    settings: Review,
    asked: Grader,
    usage: JudgeUsage,
    task: compat.Task,
    conversation: list[compat.Message],
    *,
    user_has_tools: bool,
    needs_key: bool = True,
) -> UserReview:
    """τ²'s review of the user's part in a finished conversation.

    Args:
        asked: the model; what it consumes is added to `usage`.
        needs_key: False where a tape answers.

    Raises:
        EpisodeEnd: the episode was cancelled.
    """
    module = compat.user_reviewer()
    model = settings.model or str(module.DEFAULT_LLM_EVAL_USER_SIMULATOR)
    given = grader.arguments(settings, "user.review", needs_key=needs_key)

    def ask(**request: Any) -> Any:
        return asked.ask(functools.partial(lazy_llm_utils.load().generate, **request, **given), _check_answer)

    module.generate = _generate
    token = _ask.set(ask)
    try:
        found = module.UserOnlyReviewer.review_user_simulation(
            compat.user_guidelines(user_has_tools), str(task.user_scenario), conversation, model
        )
        record = found.model_dump(mode="json") | {"cost": usage.cost_usd}
        return UserReview(model, record, usage=usage)
    except EpisodeEnd as end:
        if end.reason != TerminationReason.WALL_TIME:
            raise
        problem = "the reviewer gave no answer in the time that limits.wall_seconds left"
    except EpisodeFault as error:
        problem = error.fault.message
    except Exception as error:
        problem = f"{type(error).__name__}: {first_line(error)}"
    finally:
        _ask.reset(token)
    problem = redact(problem, limit=500)
    _log.warning("The user of task %s is not reviewed: %s", task.id, problem)
    return UserReview(model, None, problem, usage)


_ask: ContextVar[Callable[..., Any] | None] = ContextVar("ask", default=None)


def _generate(**request: Any) -> Any:
    """Stands in τ²'s reviewer in the place of `generate`."""
    ask = _ask.get()
    return lazy_llm_utils.load().generate(**request) if ask is None else ask(**request)


def _check_answer(content: str) -> None:
    """Check that τ² can read the answer, and that it is a review: τ² takes any object without errors for a good one.

    Raises:
        ValueError: it is none.
    """
    module = compat.user_reviewer()
    found = json.loads(module.extract_json_from_llm_response(content))
    if not isinstance(found, dict) or not isinstance(found.get("errors"), list):
        raise ValueError("the reviewer's answer has no list of errors")
    module._parse_user_only_review_response(content)
