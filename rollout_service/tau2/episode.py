"""One episode, from a task to its trajectory.

Invariant: `EpisodeRunner.run` always returns a trajectory, or raises because the request cannot be met. The official
orchestrator runs in the calling thread, and only the policy's calls go to the event loop. The outcome says what the
policy did; the fault says what went wrong elsewhere. An episode has a reward only if the policy took a turn and nothing
else ended it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import rollout_service.served_user as served_user
from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.parsed_turn import ChatMessage, ParsedTurn
from rollout_service.chat.suitability import check_suits
from rollout_service.chat.transcript import Transcript
from rollout_service.collecting.request import EpisodeRequest
from rollout_service.config import RolloutConfig, secrets
from rollout_service.config.sampling import Sampling
from rollout_service.errors import EpisodeEnd, EpisodeFault, Fault, FaultKind, boundary
from rollout_service.pacing import endpoints
from rollout_service.pacing.endpoints import Side
from rollout_service.pacing.gate import Gate
from rollout_service.policy.base import Generation, Policy, TurnInfo
from rollout_service.policy.context import context_length, only_endpoint_knows, vocabulary
from rollout_service.record import user_flaws
from rollout_service.record.trajectory import Timing, Trajectory, UserReview, outcome_of
from rollout_service.tau2 import (
    agent,
    api_errors,
    compat,
    domain,
    evaluation,
    judge,
    lazy_llm_utils,
    messages,
    taping,
    tasks,
    turn_facts,
    user_review,
    users,
)
from rollout_service.tau2.deadline import Deadline
from rollout_service.tau2.models import EpisodeModels
from rollout_service.tau2.orchestrator import Orchestrator
from rollout_service.tau2.provenance import ProvenanceSource
from rollout_service.termination import UNSCORED, TerminationReason


class EpisodeRunner:
    """Runs episodes of one configuration. All slots of a process share it; each calls `run` in its own thread."""

    def __init__(
        self,
        config: RolloutConfig,
        codec: ChatCodec,
        policy: Policy,
        loop: asyncio.AbstractEventLoop,
        gates: Mapping[Side, Gate] | None = None,
    ) -> None:
        """
        Args:
            loop: the running event loop in which the policy is called. Its thread must not call `run`.
            gates: where requests to the user simulator's and the judge's models wait for their turn; None: this
                runner's own.

        Raises:
            ConfigError: a key's environment variable is not set, or users cannot be reviewed.
            TapeError: the tape cannot be used with this configuration.
            CodecError: the codec's chat template lacks something that the episodes need.
        """
        self._config = config = served_user.as_called(config)
        self._codec = codec
        self._policy = policy
        self._loop = loop
        self._solo = config.agent == "solo"
        self._user_kind = config.user_kind
        self._gates = endpoints.gates(config) if gates is None else gates
        check_suits(codec, config)
        secrets.know(config)
        judge.configure(config.evaluation, needs_key=not config.tape.asks_nobody)
        user_review.check(config.user.review, needs_key=not config.tape.asks_nobody)
        self._tape = taping.opened(config)
        if self._user_kind == "llm" or "nl_assertions" in config.evaluation.type:
            lazy_llm_utils.load()  # now, because it would later block all running episodes for seconds
        self._context_length = None if only_endpoint_knows(config.policy) else context_length(config.policy)
        """None: the endpoint itself says when an episode is too long."""
        self._vocabulary = vocabulary(config.policy)
        self.provenance = ProvenanceSource(config, codec, self._vocabulary)

    def prepare(self) -> dict[str, str]:
        """Load what the episodes of the configured domains share, before the first of them needs it.

        Returns:
            A fingerprint of each domain's data. All processes of a service must have the same.
        """
        chosen = self._config.tasks
        for name in chosen.domains:
            shared = domain.get(name, chosen.searched)
            whole = tasks.references(name, chosen.chosen_split)
            taping.check_tasks(self._tape, whole)
            schemas = shared.tool_schemas(self._solo)
            if self._config.agent == "llm":  # the other agents' prompts differ by task
                policy = shared.environment().get_policy()
                talker = compat.LLMAgent(tools=shared.agent_tools(self._solo), domain_policy=policy, llm="policy")
                opening = [{"role": "system", "content": talker.system_prompt}, {"role": "user", "content": "hi"}]
                self._codec.render(opening, schemas)  # the codec caches the tokens of such long texts
        return {name: domain.get(name).files.fingerprint for name in chosen.domains}

    def run(self, request: EpisodeRequest, deadline: Deadline | None = None) -> Trajectory:
        """Run the episode to its end. Blocks until then; set `deadline.cancelled` to end it early.

        Raises:
            RolloutError: the request itself cannot be met (unknown task, task unfit for the agent).
        """
        return _Episode(self, request, deadline or Deadline(self._config.limits.wall_seconds)).run()

    def sampling(self, chosen: Sampling) -> Sampling:
        """`chosen`, with the codec's stop tokens added, because not every model's configuration names the token that
        ends a turn in its chat template."""
        stops = tuple(sorted({*chosen.stop_token_ids, *self._codec.stop_token_ids}))
        return chosen.model_copy(update={"stop_token_ids": stops})

    def ends(self, sampling: Sampling) -> frozenset[int]:
        """Ids with which a turn may end when its finish reason is `stop`."""
        return self._codec.turn_end_ids.union(sampling.stop_token_ids)


class _Episode:
    """The state of one episode while it runs."""

    def __init__(self, runner: EpisodeRunner, request: EpisodeRequest, deadline: Deadline) -> None:
        self._runner = runner
        self._config = runner._config
        self._request = request
        self._deadline = deadline
        self._chosen = request.sampling or runner._config.policy.sampling
        self._sampling = runner.sampling(self._chosen)
        self._started = datetime.now(UTC).isoformat(timespec="microseconds")
        self._timing = Timing(queue_seconds=request.waited_seconds)
        self._task = tasks.get(request.task)
        self._models = EpisodeModels(runner._config, runner._tape, request, self._task, deadline, runner._gates)
        self._user_review: UserReview | None = None
        self._domain = domain.get(request.task.domain, self._config.tasks.searched)
        self._transcript = Transcript(
            runner._codec, self._domain.tool_schemas(runner._solo), self._config.policy.history
        )

    def run(self) -> Trajectory:
        start, task = time.perf_counter(), self._task
        fault: Fault | None = None
        orchestrator: Any = None
        conversation: list[compat.Message] = []
        score: evaluation.Score | None = None
        hashes: dict[str, str | None] = {}
        try:
            with boundary(FaultKind.ENVIRONMENT):
                orchestrator = self._orchestrator(task)
                reason, conversation = _converse(orchestrator)
                end = self._domain.end_state(orchestrator.environment)
                hashes = end.hashes
            if not self._transcript.turns:
                _check_not_ended_by_user(reason, conversation)
            elif reason not in UNSCORED:
                score = self._score(orchestrator, end, conversation, task, reason)
                self._review(conversation)
            self._models.finish(outcome_of(reason))
        except EpisodeEnd as cancelled:
            reason, score = cancelled.reason, None  # while the judge or the reviewer was asked
        except EpisodeFault as error:
            reason, fault, score = TerminationReason.FAULT, error.fault, None
            if orchestrator is not None:
                conversation = orchestrator.get_trajectory()
        timing = self._timing
        others = timing.policy_seconds + timing.user_seconds + timing.evaluation_seconds
        timing.environment_seconds = max(0.0, time.perf_counter() - start - others)
        record = [messages.to_record(message) for message in conversation]
        if orchestrator is not None:
            turns, replies = self._transcript.turns, orchestrator.agent.replies
            turn_facts.note(turns, replies, conversation, record, self._task, orchestrator.environment.wrote)
        return self._trajectory(record, reason, score, fault, hashes)

    def _orchestrator(self, task: compat.Task) -> Any:
        runner, request, solo = self._runner, self._request, self._runner._solo
        world = self._domain.environment(solo=solo, task=task)
        tools, user_tools = self._domain.agent_tools(solo), self._domain.user_tools(task)
        user = users.make(
            runner._user_kind,
            task,
            user_tools,
            self._config.user,
            request.seed,
            self._models.user_usage,
            self._deadline,
            self._models.user,
        )
        users.watched(user, self._users_turn)
        return Orchestrator(
            domain=request.task.domain,
            agent=agent.make(self._config.agent, tools, world.get_policy(), task, self._take_turn),
            user=user,
            environment=world,
            task=task,
            max_steps=self._config.limits.max_steps,
            max_errors=self._config.limits.max_errors,
            seed=request.seed,
            solo_mode=solo,
        )

    @contextlib.contextmanager
    def _users_turn(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with self._deadline.within("the user simulator"):
                yield
        finally:
            self._timing.user_seconds += time.perf_counter() - start

    def _take_turn(self, new_messages: Sequence[ChatMessage]) -> ParsedTurn:
        """Take one policy turn. Called in the orchestrator's thread."""
        self._deadline.remaining()
        number = len(self._transcript.turns)
        if number >= (self._request.max_turns or self._config.limits.max_turns):
            raise EpisodeEnd(TerminationReason.MAX_TURNS)
        input_ids = self._transcript.prompt(new_messages)
        room = self._room(len(input_ids))
        sampling = self._sampling
        if sampling.max_new_tokens > room:
            sampling = sampling.model_copy(update={"max_new_tokens": room})
        start = time.perf_counter()
        try:
            with self._deadline.within("the policy"):
                generation = self._generate(input_ids, sampling, number)
        finally:
            seconds = time.perf_counter() - start
            self._timing.policy_seconds += seconds
        with boundary(FaultKind.POLICY):
            generation.check_tokens(self._runner.ends(sampling), self._runner._vocabulary)
            turn = self._transcript.record(generation, seconds)
        self._deadline.sampled(self._transcript.oldest_version)
        return turn

    def _room(self, prompt_length: int) -> int:
        """Largest number of tokens that the turn may have.

        Raises:
            EpisodeEnd: there is no room for a turn.
        """
        turns = self._transcript.turns
        limits: dict[TerminationReason, int] = {}
        if (context := self._runner._context_length) is not None:
            limits[TerminationReason.CONTEXT_LENGTH] = context
        if (response := self._config.policy.response_length) is not None:
            limits[TerminationReason.RESPONSE_LENGTH] = (turns[0].start if turns else prompt_length) + response
        if not limits:
            return self._sampling.max_new_tokens
        reason = min(limits, key=limits.__getitem__)
        if prompt_length >= limits[reason]:
            raise EpisodeEnd(reason)
        return limits[reason] - prompt_length

    def _generate(self, input_ids: Any, sampling: Sampling, number: int) -> Generation:
        request, config = self._request, self._config
        info = TurnInfo(
            task=request.task,
            agent=config.agent,
            seed=request.seed,
            turn=number,
            min_version=max(request.min_version, self._transcript.newest_version),
            prefix_version=self._transcript.turns[-1].prefix_version if number else None,
            known_tokens=self._transcript.known_tokens,
        )
        call: Coroutine[Any, Any, Generation] = self._runner._policy.generate(
            input_ids, sampling, request.trajectory_id, info
        )
        limit = config.policy.timeout_seconds
        with boundary(FaultKind.POLICY):
            try:
                return self._deadline.result(asyncio.run_coroutine_threadsafe(call, self._runner._loop), limit)
            except concurrent.futures.CancelledError:
                raise EpisodeEnd(TerminationReason.CANCELLED) from None
            except TimeoutError:
                raise TimeoutError(f"the policy gave no answer in {limit:.0f} s") from None

    def _score(
        self,
        orchestrator: compat.Orchestrator,
        end: domain.EndState,
        conversation: list[compat.Message],
        task: compat.Task,
        reason: str,
    ) -> evaluation.Score:
        start = time.perf_counter()
        try:
            with (
                self._deadline.within("the evaluation"),
                boundary(FaultKind.EVALUATOR, api_errors.ends_episodes),
                self._models.judging(),
            ):
                return evaluation.score(
                    orchestrator,
                    end,
                    conversation,
                    task,
                    self._domain,
                    reason,
                    self._config.evaluation,
                    solo=self._runner._solo,
                )
        finally:
            self._timing.evaluation_seconds = time.perf_counter() - start

    def _review(self, conversation: list[compat.Message]) -> None:
        """Have τ² review the user's part, if this episode is among those that are reviewed."""
        start = time.perf_counter()
        try:
            with self._deadline.within("the review of the user"):
                has_tools = self._domain.user_tools(self._task) is not None
                self._user_review = self._models.review(conversation, has_tools)
        finally:
            self._timing.evaluation_seconds += time.perf_counter() - start

    def _trajectory(
        self,
        record: list[dict[str, Any]],
        reason: str,
        score: evaluation.Score | None,
        fault: Fault | None,
        hashes: dict[str, str | None],
    ) -> Trajectory:
        reward_info = None if score is None else score.reward_info.model_dump(mode="json")
        part = str(self._task.user_scenario) if self._runner._user_kind == "llm" else None
        return Trajectory(
            **self._request.identity(),
            outcome=outcome_of(reason),
            termination_reason=str(reason),
            reward=None if score is None else float(score.reward_info.reward),
            segments=self._transcript.segments(),
            messages=record,
            reward_info=reward_info,
            fault=fault,
            database_hashes=hashes,
            started=self._started,
            timing=self._timing,
            user_usage=self._models.user_usage,
            user_flaws=user_flaws.looked_for(record, reason, part, reward_info),
            user_review=self._user_review,
            judge_usage=self._models.judge_usage,
            provenance=self._runner.provenance.of(
                self._request.task,
                self._chosen,
                "" if score is None else score.evaluator,
                self._request.max_turns,
            ),
        )


def _check_not_ended_by_user(reason: str, conversation: list[compat.Message]) -> None:
    """Check that it was not the user who ended an episode without a policy turn.

    Raises:
        EpisodeFault: the user did, with a stop signal or with too many errors.
    """
    if reason not in (TerminationReason.USER_STOP, TerminationReason.TOO_MANY_ERRORS):
        return
    last = next((m.content for m in reversed(conversation) if isinstance(m, compat.UserMessage)), None)
    signal = next((signal for signal in compat.STOP_SIGNALS if signal in (last or "")), reason)
    raise EpisodeFault(
        FaultKind.USER_SIMULATOR,
        f"the user ended the conversation ({signal}) before the policy took a turn. If this keeps "
        "happening, choose another user.model.",
        error="UserEnded",
    )


def _converse(orchestrator: Any) -> tuple[str, list[compat.Message]]:
    """Run the official orchestrator. Returns why it ended, and the messages."""
    try:
        simulation = orchestrator.run()
    except EpisodeEnd as end:
        return end.reason, orchestrator.get_trajectory()
    return str(simulation.termination_reason.value), simulation.messages
