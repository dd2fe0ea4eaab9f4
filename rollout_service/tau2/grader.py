"""Grader: a language model that reads a finished conversation for τ²'s own code, made reliable: the judge of NL
assertions, and the reviewer of the user simulator.

Invariant: what reaches τ² is an answer that can be used, or an error. A model that fails, hangs or gives half an answer
is asked again alone: the conversation that it reads stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import rollout_service.logs as logs
from rollout_service.config.evaluation import Judge
from rollout_service.config.review import Review
from rollout_service.config.secrets import secret
from rollout_service.errors import EpisodeEnd, EpisodeFault, first_line
from rollout_service.pacing.endpoints import GRADER_LONGEST_WAIT
from rollout_service.record.trajectory import JudgeUsage
from rollout_service.tau2 import api_errors
from rollout_service.tau2.attempts import Attempts
from rollout_service.tau2.deadline import Deadline
from rollout_service.tau2.model_calls import ModelCalls

_log = logs.logger(__name__)

_DEFAULTS = {"timeout": 120.0, "max_retries": 0, "num_retries": 0}
"""Arguments of each request, unless the settings have others. litellm's own timeout is ten minutes. Requests are
repeated here, so that they are counted and bounded."""

_FIRST_WAIT = 0.5
"""Seconds before the first repeated request. Doubles each time, with jitter, unless the API names a time."""

_BESIDE = 5.0
"""Seconds beyond the time limits of a request's tries after which it is given up."""


def arguments(settings: Judge | Review, section: str, *, needs_key: bool = True) -> dict[str, Any]:
    """Arguments of `litellm.completion` for a grader with these settings.

    Args:
        section: name of the settings, as `evaluation.judge`.
        needs_key: False where a tape answers.

    Raises:
        ConfigError: the key's environment variable is not set.
    """
    found = {**_DEFAULTS, **settings.arguments}
    key = secret(settings.api_key_var, f"{section}.api_key_var") if needs_key else None
    if settings.base_url:
        found["api_base"] = settings.base_url
    if key or settings.base_url:
        found["api_key"] = key or "none"
    return found


class Grader:
    """One language model that reads one episode."""

    def __init__(self, name: str, retries: int, calls: ModelCalls, usage: JudgeUsage, deadline: Deadline) -> None:
        """
        Args:
            name: for log lines.
        """
        self._name = name
        self._retries = retries
        self._calls = calls
        self._usage = usage
        self._deadline = deadline

    def ask(self, generate: functools.partial[Any], check: Callable[[str], None]) -> Any:
        """The model's answer. The request is repeated until there is one that `check` accepts.

        Args:
            check: raises for an answer that cannot be used.

        Raises:
            EpisodeEnd: the episode's time ran out first, or the episode was cancelled.
            EpisodeFault: the tape has no answer.
            Exception: the last request's error.
        """
        tries = 1 + int(generate.keywords.get("max_retries") or 0)
        seconds = float(generate.keywords.get("timeout") or _DEFAULTS["timeout"]) * tries + _BESIDE
        attempts = Attempts(self._retries, self._calls.gate)
        while True:
            try:
                reply = self._calls.ask(generate, seconds)
                check(reply.content or "")
                return reply
            except (EpisodeEnd, EpisodeFault):
                raise
            except Exception as error:
                self._usage.failed_requests += 1
                attempts.failed(error)
                if attempts.are_over or api_errors.is_refused(error):
                    raise
                if not attempts.is_limited:  # else the gate makes every request wait
                    self._pause(error, attempts.counted)

    def _pause(self, error: Exception, failed: int) -> None:
        """Wait before the request is repeated that failed so many times."""
        replayed = self._calls.was_replayed
        wait = 0.0 if replayed else api_errors.wait(error, failed - 1, _FIRST_WAIT, GRADER_LONGEST_WAIT)
        count = f"request {failed + 1} of {self._retries + 1}"
        _log.info("The %s is asked again in %.1f s (%s): %s", self._name, wait, count, first_line(error))
        self._deadline.sleep(wait)
