"""One episode, from a task to its trajectory.

Invariant: `EpisodeRunner.run` always returns a trajectory. The official orchestrator runs in the calling thread; only
the policy's calls go to the event loop. What the policy did is in the outcome, what others did to it in the fault, and
only an episode that ended by its own doing has a reward.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from rollout_service import __version__
from rollout_service.chat import ChatCodec
from rollout_service.config import RolloutConfig
from rollout_service.errors import EpisodeEnd, EpisodeFault, Fault, FaultKind, boundary
from rollout_service.parsed_turn import ChatMessage, ParsedTurn
from rollout_service.policy.base import Generation, Policy, Sampling
from rollout_service.request import EpisodeRequest
from rollout_service.tau2 import agent, compat, environment, evaluation, messages, tasks, users
from rollout_service.tau2.clock import Clock
from rollout_service.trajectory import (
    Outcome,
    Provenance,
    Timing,
    Trajectory,
    UserUsage,
)
from rollout_service.transcript import Transcript

_OUTCOMES = {
    "user_stop": Outcome.COMPLETED,
    "agent_stop": Outcome.COMPLETED,
    "agent_error": Outcome.AGENT_ERROR,
    "cancelled": Outcome.ABORTED,
    "fault": Outcome.ABORTED,
}
"""Every other termination reason is a limit: truncated."""

_UNSCORED = {"cancelled", "fault", "wall_time"}

_CANCEL_POLL_SECONDS = 1.0
"""How late a waiting episode may notice that it was cancelled."""


class EpisodeRunner:
    """Runs episodes of one configuration. Shared by all slots of a process; each `run` takes a thread of its own."""

    def __init__(
        self, config: RolloutConfig, codec: ChatCodec, policy: Policy, loop: asyncio.AbstractEventLoop
    ) -> None:
        """
        Args:
            loop: a running event loop in another thread than those that call `run`; the policy is called there.

        Raises:
            ConfigError: a key's environment variable is not set.
        """
        self._config = config
        self._codec = codec
        self._policy = policy
        self._loop = loop
        self._solo = config.agent == "solo"
        self._user_kind = config.user_kind
        self._judge_secrets = evaluation.configure_judge(config.evaluation)

    def run(self, request: EpisodeRequest, clock: Clock | None = None) -> Trajectory:
        """Run the episode to its end. Blocks for as long as it takes; set `clock.cancelled` to end it early.

        Raises:
            RolloutError: the request itself cannot be met (unknown task, task unfit for the agent).
        """
        return _Episode(self, request, clock or Clock(self._config.limits.wall_seconds)).run()

    def provenance(self) -> Provenance:
        """What every trajectory of this runner shares."""
        codec, config = self._codec, self._config
        return Provenance(
            model=f"{config.policy.engine}",
            tokenizer=codec.name,
            tokenizer_fingerprint=codec.tokenizer_fingerprint,
            template_fingerprint=codec.template_fingerprint,
            history=config.policy.history,
            sampling=config.policy.sampling.model_dump(),
            agent=config.agent,
            user=str(config.user.model) if self._user_kind == "llm" else self._user_kind,
            evaluation=config.evaluation.type,
            tau2_distribution=compat.DISTRIBUTION,
            tau2_version=compat.VERSION,
            service_version=__version__,
        )


class _Episode:
    """The state of one episode while it runs."""

    def __init__(self, runner: EpisodeRunner, request: EpisodeRequest, clock: Clock) -> None:
        self._runner = runner
        self._config = runner._config
        self._request = request
        self._clock = clock
        self._timing = Timing(queue_seconds=max(0.0, time.time() - request.requested_at))
        self._usage = UserUsage()
        self._transcript = Transcript(
            runner._codec, environment.tool_schemas(request.task.domain, runner._solo), self._config.policy.history
        )

    def run(self) -> Trajectory:
        start = time.perf_counter()
        task = tasks.get(self._request.task)
        fault: Fault | None = None
        orchestrator: Any = None
        reward_info: compat.RewardInfo | None = None
        hashes: dict[str, str | None] = {}
        try:
            with boundary(FaultKind.ENVIRONMENT):
                orchestrator = self._orchestrator(task)
                try:
                    reason = str(orchestrator.run().termination_reason.value)
                except EpisodeEnd as end:
                    reason = end.reason
                hashes = environment.database_hashes(orchestrator.environment)
            if reason not in _UNSCORED:
                reward_info = self._evaluate(orchestrator, task, reason)
        except EpisodeFault as error:
            reason, fault = "fault", error.fault
        timing = self._timing
        others = timing.policy_seconds + timing.user_seconds + timing.evaluation_seconds
        timing.environment_seconds = max(0.0, time.perf_counter() - start - others)
        return self._trajectory(orchestrator, reason, reward_info, fault, hashes)

    def _orchestrator(self, task: compat.Task) -> Any:
        runner, request = self._runner, self._request
        world = environment.make(request.task.domain, solo=runner._solo)
        user = users.make(runner._user_kind, task, world, self._config.user, request.seed, self._usage, self._clock)
        users.timed(user, self._add_user_seconds)
        return compat.Orchestrator(
            domain=request.task.domain,
            agent=agent.make(self._config.agent, world, task, self._take_turn),
            user=user,
            environment=world,
            task=task,
            max_steps=self._config.limits.max_steps,
            max_errors=self._config.limits.max_errors,
            seed=request.seed,
            solo_mode=runner._solo,
        )

    def _add_user_seconds(self, seconds: float) -> None:
        self._timing.user_seconds += seconds

    def _take_turn(self, new_messages: Sequence[ChatMessage]) -> ParsedTurn:
        """One policy turn, from the orchestrator's thread."""
        remaining = self._clock.remaining()
        number = len(self._transcript.turns)
        if number >= self._config.limits.max_turns:
            raise EpisodeEnd("max_turns")
        input_ids = self._transcript.prompt(new_messages)
        room = self._config.policy.context_length - len(input_ids)
        if room <= 0:
            raise EpisodeEnd("context_length")
        sampling = self._config.policy.sampling
        if sampling.max_new_tokens > room:
            sampling = sampling.model_copy(update={"max_new_tokens": room})
        start = time.perf_counter()
        try:
            generation = self._generate(input_ids, sampling, number, remaining)
        finally:
            seconds = time.perf_counter() - start
            self._timing.policy_seconds += seconds
        with boundary(FaultKind.POLICY):
            return self._transcript.record(generation, seconds)

    def _generate(self, input_ids: Any, sampling: Sampling, number: int, remaining: float) -> Generation:
        request, config = self._request, self._config
        metadata = {"task": request.task, "agent": config.agent, "seed": request.seed, "turn": number}
        call: Coroutine[Any, Any, Generation] = self._runner._policy.generate(
            input_ids, sampling, request.trajectory_id, metadata
        )
        limit = min(remaining, config.policy.timeout_seconds)
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(call, limit), self._runner._loop)
        while not concurrent.futures.wait([future], timeout=_CANCEL_POLL_SECONDS).done:
            if self._clock.cancelled.is_set():
                future.cancel()
        with boundary(FaultKind.POLICY):
            try:
                return future.result()
            except concurrent.futures.CancelledError:
                raise EpisodeEnd("cancelled") from None
            except TimeoutError:
                if remaining <= config.policy.timeout_seconds:
                    raise EpisodeEnd("wall_time") from None
                raise TimeoutError(f"the policy gave no answer in {limit:.0f} s") from None

    def _evaluate(self, orchestrator: Any, task: compat.Task, reason: str) -> compat.RewardInfo:
        start = time.perf_counter()
        try:
            with boundary(FaultKind.EVALUATOR, secrets=self._runner._judge_secrets):
                return evaluation.evaluate(
                    orchestrator.get_trajectory(),
                    task,
                    self._request.task.domain,
                    reason,
                    evaluation_type=self._config.evaluation.type,
                    solo=self._runner._solo,
                )
        finally:
            self._timing.evaluation_seconds = time.perf_counter() - start

    def _trajectory(
        self,
        orchestrator: Any,
        reason: str,
        reward_info: compat.RewardInfo | None,
        fault: Fault | None,
        hashes: dict[str, str | None],
    ) -> Trajectory:
        conversation = orchestrator.get_trajectory() if orchestrator is not None else []
        record = [messages.to_record(message) for message in conversation]
        if orchestrator is not None:
            self._locate_turns(record, orchestrator.agent.replies)
        return Trajectory(
            **self._request.identity(),
            outcome=_OUTCOMES.get(reason, Outcome.TRUNCATED),
            termination_reason=reason,
            reward=None if reward_info is None else float(reward_info.reward),
            segments=self._transcript.segments(),
            messages=record,
            reward_info=None if reward_info is None else reward_info.model_dump(mode="json"),
            fault=fault,
            database_hashes=hashes,
            timing=self._timing,
            user_usage=self._usage,
            provenance=self._runner.provenance(),
        )

    def _locate_turns(self, record: list[dict[str, Any]], replies: int) -> None:
        """Note with each turn which message it became: the last `replies` of the assistant's. A turn that ended the
        episode (an empty one) became none."""
        spoken = [index for index, message in enumerate(record) if message["role"] == "assistant"]
        for turn, index in zip(self._transcript.turns, spoken[len(spoken) - replies :], strict=False):
            turn.message_index = index
