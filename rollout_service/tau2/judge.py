"""Judge: the language model that grades NL assertions.

Invariant: what reaches τ²'s evaluator is a verdict on every assertion, or an error.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import rollout_service.tau2.lazy_llm_utils as lazy_llm_utils
from rollout_service.config import Evaluation
from rollout_service.errors import EpisodeEnd, EpisodeFault, FaultKind
from rollout_service.tau2 import compat, grader
from rollout_service.tau2.grader import Grader
from rollout_service.termination import TerminationReason


def configure(evaluation: Evaluation, *, needs_key: bool = True) -> None:
    """Make τ²'s NL-assertion judge, which reads module constants, use the configured model. Call it once per process.

    Args:
        needs_key: False where a tape answers.

    Raises:
        ConfigError: the key's environment variable is not set.
    """
    judge = evaluation.judge
    module = compat.evaluator_nl_assertions
    module.DEFAULT_LLM_NL_ASSERTIONS_ARGS = grader.arguments(judge, "evaluation.judge", needs_key=needs_key)
    if judge.model:
        module.DEFAULT_LLM_NL_ASSERTIONS = judge.model
    module.generate = _generate


class Judge:
    """The judge of one episode."""

    def __init__(self, asked: Grader) -> None:
        """
        Args:
            asked: the model.
        """
        self._asked = asked
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
        """The judge's answer, a verdict on every assertion, see `Grader.ask`."""
        return self._asked.ask(generate, lambda content: _check_verdicts(content, self._assertions))


_judge: ContextVar[Judge | None] = ContextVar("judge", default=None)


def _generate(**arguments: Any) -> Any:
    """Stands in τ²'s judge in the place of `generate`."""
    generate = functools.partial(lazy_llm_utils.load().generate, **arguments)
    judge = _judge.get()
    return generate() if judge is None else judge.ask(generate)


def _check_verdicts(content: str, assertions: int) -> None:
    """Check that the answer holds a verdict on each assertion, as τ² reads it.

    Raises:
        ValueError: it does not.
    """
    try:
        graded = json.loads(content)["results"]
        whole = [each for each in graded if isinstance(each["expectedOutcome"] + each["reasoning"], str)]
        verdicts = [each for each in whole if isinstance(each["metExpectation"], bool)]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the judge's answer is not the JSON that was asked for: {type(error).__name__}") from None
    if len(verdicts) < assertions:
        raise ValueError(f"the judge graded {len(verdicts)} of {assertions} assertions")
