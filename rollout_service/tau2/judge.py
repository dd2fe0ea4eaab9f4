"""Judge: the language model that grades NL assertions, made reliable.

Invariant: what reaches τ²'s evaluator is a verdict on every assertion, or an error. A judge that fails, hangs or gives
half an answer is asked again alone: the conversation that it grades stays as it is.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import rollout_service.logs as logs
import rollout_service.tau2.lazy_llm_utils as lazy_llm_utils
from rollout_service.config import Evaluation
from rollout_service.config.secrets import secret
from rollout_service.errors import EpisodeEnd, EpisodeFault, FaultKind, first_line
from rollout_service.record.trajectory import JudgeUsage
from rollout_service.tau2 import api_errors, compat
from rollout_service.tau2.deadline import Deadline
from rollout_service.tau2.model_calls import ModelCalls
from rollout_service.termination import TerminationReason

_log = logs.logger(__name__)

_DEFAULTS = {"timeout": 120.0, "max_retries": 0, "num_retries": 0}
"""Arguments of each request, unless `judge.arguments` has others. litellm's own timeout is ten minutes. Requests are
repeated here, so that they are counted and bounded."""

_FIRST_WAIT = 0.5
"""Seconds before the first repeated request. Doubles each time, with jitter, unless the API names a time."""

_MOST_WAIT = 60.0
"""Most seconds between two requests."""

_BESIDE = 5.0
"""Seconds beyond the time limits of a request's tries after which it is given up."""


def configure(evaluation: Evaluation, *, needs_key: bool = True) -> None:
    """Make τ²'s NL-assertion judge, which reads module constants, use the configured model. Call it once per process.

    Args:
        needs_key: False where a tape answers.

    Raises:
        ConfigError: the key's environment variable is not set.
    """
    judge = evaluation.judge
    arguments = {**_DEFAULTS, **judge.arguments}
    key = secret(judge.api_key_var, "evaluation.judge.api_key_var") if needs_key else None
    if judge.base_url:
        arguments["api_base"] = judge.base_url
    if key or judge.base_url:
        arguments["api_key"] = key or "none"
    module = compat.evaluator_nl_assertions
    if judge.model:
        module.DEFAULT_LLM_NL_ASSERTIONS = judge.model
    module.DEFAULT_LLM_NL_ASSERTIONS_ARGS = arguments
    module.generate = _generate


class Judge:
    """The judge of one episode."""

    def __init__(self, retries: int, calls: ModelCalls, usage: JudgeUsage, deadline: Deadline) -> None:
        self._retries = retries
        self._calls = calls
        self._usage = usage
        self._deadline = deadline
        self._assertions = 0

    @contextlib.contextmanager
    def of(self, task: compat.Task) -> Iterator[None]:
        """Within this context, τ²'s evaluator has this judge grade the task's assertions.

        Raises:
            EpisodeFault: the episode's time ran out before the judge answered. The policy is not to blame for that.
        """
        criteria = task.evaluation_criteria
        self._assertions = len((criteria.nl_assertions or []) if criteria else [])
        token = _judge.set(self)
        try:
            yield
        except EpisodeEnd as end:
            if end.reason != TerminationReason.WALL_TIME:
                raise
            text = "the judge gave no verdict in the time that limits.wall_seconds left"
            raise EpisodeFault(FaultKind.EVALUATOR, text, error="TimeoutError") from None
        finally:
            _judge.reset(token)

    def ask(self, generate: functools.partial[Any]) -> Any:
        """The judge's answer, a verdict on every assertion. The request is repeated until there is one.

        Raises:
            EpisodeEnd: the episode's time ran out first, or the episode was cancelled.
            EpisodeFault: the tape has no answer.
            Exception: the last request's error.
        """
        tries = 1 + int(generate.keywords.get("max_retries") or 0)
        seconds = float(generate.keywords.get("timeout") or _DEFAULTS["timeout"]) * tries + _BESIDE
        for attempt in range(self._retries + 1):
            try:
                reply = self._calls.ask(generate, seconds)
                _check_verdicts(reply.content, self._assertions)
                return reply
            except (EpisodeEnd, EpisodeFault):
                raise
            except Exception as error:
                self._usage.failed_requests += 1
                if attempt == self._retries or api_errors.is_refused(error):
                    raise
                wait = 0.0 if self._calls.was_replayed else api_errors.wait(error, attempt, _FIRST_WAIT, _MOST_WAIT)
                count = f"request {attempt + 2} of {self._retries + 1}"
                _log.info("The judge is asked again in %.1f s (%s): %s", wait, count, first_line(error))
                self._deadline.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


_judge: ContextVar[Judge | None] = ContextVar("judge", default=None)


def _generate(**arguments: Any) -> Any:
    """Stands in τ²'s judge in the place of `generate`."""
    generate = functools.partial(lazy_llm_utils.load().generate, **arguments)
    judge = _judge.get()
    return generate() if judge is None else judge.ask(generate)


def _check_verdicts(content: str | None, assertions: int) -> None:
    """Check that the answer holds a verdict on each assertion, as τ² reads it.

    Raises:
        ValueError: it does not.
    """
    try:
        graded = json.loads(content or "")["results"]
        whole = [each for each in graded if isinstance(each["expectedOutcome"] + each["reasoning"], str)]
        verdicts = [each for each in whole if isinstance(each["metExpectation"], bool)]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the judge's answer is not the JSON that was asked for: {type(error).__name__}") from None
    if len(verdicts) < assertions:
        raise ValueError(f"the judge graded {len(verdicts)} of {assertions} assertions")
