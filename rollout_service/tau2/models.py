"""EpisodeModels: the language models that one episode asks: the user simulator's, the judge's and the reviewer's.

Invariant: they share the episode's deadline and its part of the tape, and each has an account of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rollout_service.collecting.request import EpisodeRequest
from rollout_service.config import RolloutConfig
from rollout_service.config.price import Price
from rollout_service.pacing.endpoints import Side
from rollout_service.pacing.gate import Gate
from rollout_service.record.trajectory import JudgeUsage, Outcome, UserReview, UserUsage
from rollout_service.tape.folder import TapeFolder
from rollout_service.tau2 import compat, evaluation, judge, taping, user_review
from rollout_service.tau2.deadline import Deadline
from rollout_service.tau2.grader import Grader
from rollout_service.tau2.model_calls import ModelCalls

if TYPE_CHECKING:
    from rollout_service.tape.episode import EpisodeTape


class EpisodeModels:
    """What an episode asks its models through, and what they consume."""

    def __init__(
        self,
        config: RolloutConfig,
        folder: TapeFolder | None,
        request: EpisodeRequest,
        task: compat.Task,
        deadline: Deadline,
        gates: Mapping[Side, Gate],
    ) -> None:
        """
        Args:
            gates: where each side's requests wait for their turn. They need not where it has none.
        """
        self._config = config
        self._gates = gates
        self._request = request
        self._task = task
        self._deadline = deadline
        self._tape: EpisodeTape | None = taping.of_episode(folder, config, request, task)
        self.user_usage = UserUsage()
        self._judge_usage = JudgeUsage()

    @property
    def judge_usage(self) -> JudgeUsage | None:
        """What the judge consumed; None: it was not asked."""
        return self._judge_usage if self._judge_usage.requests else None

    def user(self) -> ModelCalls:
        """The requests to the user simulator's model."""
        return self._calls("user", self.user_usage, self._config.user.price)

    def judging(self) -> contextlib.AbstractContextManager[None]:
        """The context in which the evaluator asks this episode's judge, if the task has one."""
        settings = self._config.evaluation
        if not evaluation.is_judged(self._task, settings.type):
            return contextlib.nullcontext()
        calls = self._calls("judge", self._judge_usage, settings.judge.price)
        asked = Grader("judge", settings.judge.retries, calls, self._judge_usage, self._deadline)
        return judge.Judge(asked).of(self._task)

    def review(self, conversation: list[compat.Message], user_has_tools: bool) -> UserReview | None:
        """τ²'s review of the user's part in the finished conversation. None: the episode is not among those chosen.

        Raises:
            EpisodeEnd: the episode was cancelled.
        """
        settings = self._config.user.review
        if not user_review.is_chosen(settings.share, self._request):
            return None
        usage = JudgeUsage()
        calls = self._calls("review", usage, settings.price)
        return user_review.review(
            settings,
            Grader("user's reviewer", settings.retries, calls, usage, self._deadline),
            usage,
            self._task,
            conversation,
            user_has_tools=user_has_tools,
            needs_key=not calls.asks_nobody,
        )

    def finish(self, outcome: Outcome) -> None:
        """Note on the tape how the episode ended.

        Raises:
            EpisodeFault: the tape cannot be written.
        """
        if self._tape is not None and outcome is not Outcome.ABORTED:
            self._tape.finish(str(outcome))

    def _calls(self, asked: Side, usage: UserUsage, price: Price) -> ModelCalls:
        latency = self._config.tape.latency == "recorded"
        gate = self._gates.get(asked)
        return ModelCalls(
            asked, self._deadline, usage, price=price, tape=self._tape, replayed_latency=latency, gate=gate
        )
