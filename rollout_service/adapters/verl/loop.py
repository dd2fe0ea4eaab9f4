"""verl's agent loop: τ² episodes in verl's own workers, sampled by verl's own servers. Tested against verl 0.9.1.

Invariant: verl gets the tokens that its servers saw and sampled, with the official evaluator's reward, or an error: an
episode that has no reward is played again, and never becomes a reward of 0. After an error verl's trainer leaves the
group out (`verl/trainer/ppo/v1`), or ends (its older one).

verl's agent loop workers are Ray actors; each plays its episodes in threads of its own, so no service is started, and
weights are verl's affair. In the file of `actor_rollout_ref.rollout.agent.agent_loop_config_path`:

    - name: tau2
      _target_: rollout_service.adapters.verl.loop.Tau2AgentLoop
      config: /shared/rollout.yaml      # the service's settings, without the policy's
      settings: {user.model: openai/gpt-4.1-mini, service.slots: 64}      # and by dotted name, over them

Nothing here imports verl before an episode runs.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
import uuid
from collections.abc import Mapping
from typing import Any

import rollout_service.adapters.checks as checks
import rollout_service.adapters.rows as rows
import rollout_service.logs as logs
from rollout_service.adapters.checks import TrainingDataError
from rollout_service.adapters.verl.batch import agent_loop_output
from rollout_service.chat.codec import ChatCodec
from rollout_service.collecting.request import EpisodeRequest
from rollout_service.collecting.retry import seconds_before_retry
from rollout_service.config import RolloutConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError
from rollout_service.policy.verl import VerlPolicy
from rollout_service.record.trajectory import TaskRef, Trajectory
from rollout_service.tau2.slots import Slots
from rollout_service.termination import TerminationReason

_log = logs.logger(__name__)


class Tau2AgentLoop:
    """Plays one episode. verl makes one for each row of its batch and calls `run`, which is all that it asks of one;
    what its base class prepares, this has no use for."""

    def __init__(
        self,
        *,
        trainer_config: Any,
        server_manager: Any,
        tokenizer: Any,
        config: str | None = None,
        settings: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """
        Args:
            trainer_config, server_manager, tokenizer: verl's, as it gives them to every agent loop.
            config: path of the service's YAML file.
            settings: the service's settings by dotted name, over that file.
        """
        self._actor = trainer_config.config.actor_rollout_ref
        data = getattr(trainer_config.config, "data", None)
        self._template_arguments = _plain(getattr(data, "apply_chat_template_kwargs", None) or {})
        self._client = server_manager
        self._tokenizer = tokenizer
        self._chosen = config, _plain(settings or {})

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> Any:
        """Play the row's task.

        Args:
            sampling_params: verl's, of every turn. How long a turn may be is `policy.sampling.max_new_tokens`.
            row: of the data set that `rollout-service prepare-data` wrote; its `extra_info` names the task.

        Returns:
            verl's AgentLoopOutput, see `agent_loop_output`; with log-probs if verl asked for them.

        Raises:
            TrainingDataError: no reward after `service.max_attempts` attempts.
            RolloutError: settings, task, tokenizer, key or lengths cannot be used.
        """
        from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

        player = await _player(self._client, self._tokenizer, self._actor, *self._chosen)
        player.check_template_arguments(self._template_arguments)
        trajectory = await player.play(_task(row), sampling_params)
        output = agent_loop_output(trajectory, vocabulary_size=trajectory.provenance.model_vocabulary_size)
        if not sampling_params.get("logprobs"):
            output["response_logprobs"] = None
        return AgentLoopOutput(**output)


class _Player:
    """What the episodes of a process share."""

    def __init__(
        self, config: RolloutConfig, codec: ChatCodec, policy: VerlPolicy, loop: asyncio.AbstractEventLoop
    ) -> None:
        # τ² takes seconds to import: in this thread, not in verl's.
        from rollout_service.tau2.episode import EpisodeRunner

        self._config = config
        self._runner = EpisodeRunner(config, codec, policy, loop)
        self._slots = Slots(config.service.slots, config.limits.wall_seconds)

    def check_template_arguments(self, theirs: Mapping[str, Any]) -> None:
        """Check that verl's arguments of the chat template, if it has any, are the service's.

        Raises:
            ConfigError: they differ.
        """
        checks.check_template_arguments(
            self._config.policy.template_arguments, theirs, "data.apply_chat_template_kwargs"
        )

    async def play(self, task: TaskRef, parameters: Mapping[str, Any]) -> Trajectory:
        """The first attempt that is scored.

        Raises:
            TrainingDataError: none is.
            ConfigError: the first prompt does not fit.
        """
        sampling, attempts = self._sampling(parameters), self._config.service.max_attempts
        name, seed = uuid.uuid4().hex, random.getrandbits(31)
        why = ""
        for attempt in range(1, attempts + 1):
            request = EpisodeRequest(name, "verl", name, 0, task, seed, attempt, sampling=sampling)
            trajectory = await self._slots.run(self._runner, request)
            if trajectory.is_scored:
                return trajectory
            # Another attempt would begin with the same prompt.
            if trajectory.termination_reason == TerminationReason.CONTEXT_LENGTH:
                raise ConfigError(
                    f"The first prompt of {task} leaves no room for a turn.", "Raise rollout.max_model_len."
                )
            fault = trajectory.fault
            why = trajectory.termination_reason if fault is None else f"{fault.kind}: {fault.message}"
            _log.warning("%s has no reward, attempt %d of %d: %s", task, attempt, attempts, why)
            if attempt == attempts or (fault is not None and not fault.retryable):
                break
            await asyncio.sleep(seconds_before_retry(attempt))
        raise TrainingDataError(
            f"{task} has no reward after {attempt} attempts; the last: {why}",
            "Mend that, raise service.max_attempts, or leave the task out of data.train_files.",
        )

    def _sampling(self, parameters: Mapping[str, Any]) -> Sampling:
        if (penalty := parameters.get("repetition_penalty", 1.0)) != 1.0:
            raise ConfigError(f"repetition_penalty is {penalty}: log-probs would not be the model's.", "Leave it 1.0.")
        taken = {name: parameters[name] for name in ("temperature", "top_p", "top_k") if name in parameters}
        return Sampling.model_validate(self._config.policy.sampling.model_dump() | taken)


_players: dict[tuple[int, str], tuple[Any, asyncio.Future[_Player]]] = {}
"""By verl's client, which is kept so that its id stays its own, and the settings."""


async def _player(client: Any, tokenizer: Any, actor: Any, path: str | None, settings: dict[str, Any]) -> _Player:
    """This process's player for the client and the settings. The first episode makes it, in a thread: it imports τ² and
    proves the codec. If that fails, all see the same error."""
    key = id(client), json.dumps([path, settings], sort_keys=True)
    if key not in _players:
        loop = asyncio.get_running_loop()

        def make() -> _Player:
            config = _service_config(actor, path, settings)
            own = copy.deepcopy(tokenizer)  # the codec switches padding off in its tokenizer
            codec = ChatCodec(
                own,
                name=str(actor.model.path),
                tool_parser=config.policy.tool_parser,
                template_arguments=config.policy.template_arguments,
            )
            return _Player(config, codec, VerlPolicy(client, actor.rollout.prompt_length), loop)

        _players[key] = client, asyncio.ensure_future(asyncio.to_thread(make))
    return await asyncio.shield(_players[key][1])


def _service_config(actor: Any, path: str | None, settings: dict[str, Any]) -> RolloutConfig:
    """The service's settings, with the policy behind verl's servers and an episode in the room that verl has for it.

    Raises:
        ConfigError: naming the field, the value and the remedy.
    """
    rollout, model = actor.rollout, str(actor.model.path)
    whole = rollout.prompt_length + rollout.response_length
    longest = min(whole, rollout.get("max_model_len") or whole) - 1  # verl's servers keep a token back
    room = {"policy.context_length": longest, "policy.response_length": rollout.response_length}
    policy = {"policy.engine": "http", "policy.url": "verl", "policy.tokenizer": model, "policy.model": model}
    config = RolloutConfig.load(path, {**settings, **policy}, defaults=room)
    chosen = config.explicit()
    for name, limit in room.items():
        if chosen[name] is not None and chosen[name] > limit:
            raise ConfigError(
                f"{name} is {chosen[name]}, and verl has room for {limit}.",
                "Leave it out, or raise rollout.prompt_length, rollout.response_length or rollout.max_model_len.",
            )
    if config.policy.history != "append":
        raise ConfigError("policy.history is template: an episode could become several samples.", "Leave it out.")
    return config.with_overrides({name: limit for name, limit in room.items() if chosen[name] is None})


def _task(row: Mapping[str, Any]) -> TaskRef:
    return rows.named(
        row.get("extra_info"),
        "The extra_info of a row of verl's data set",
        "Write the file with `rollout-service prepare-data --output train.parquet`.",
    )


def _plain(settings: Any) -> dict[str, Any]:
    """As plain containers; verl reads its files with OmegaConf."""
    if isinstance(settings, dict):
        return settings
    from omegaconf import OmegaConf

    plain: dict[str, Any] = OmegaConf.to_container(settings, resolve=True)
    return plain
