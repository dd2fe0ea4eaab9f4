"""TRL's GRPOTrainer: its prompts name tasks, the service plays them, the trainer's own weights sample.

Invariant: one completion for each prompt that TRL asks with, in its order, sampled with the weights that the trainer
holds at that moment. TRL regenerates after one or several optimizer steps; whenever there was a step since, the new
weights go to the service first, as its next weight version, so no completion is ever stale.

    client = RolloutClient(config=config)  # with policy.engine transformers or sglang and the trainer's model
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=tau2_reward,
        rollout_func=rollout_func(client),
        train_dataset=Dataset.from_list(prompts("retail", "train")),
        processing_class=tokenizer,
        args=GRPOConfig(num_generations=8, temperature=1.0, ...),
    )

On several processes all clients must be of one service: start it on a Ray cluster, and give each RolloutClient("auto").

TRL hands each prompt over `num_generations` times, and computes the advantages itself, over the groups of all
processes. Written against TRL 1.16, where `rollout_func` is marked experimental; nothing here imports it.

What TRL does not take: the length limits of GRPOConfig (the service's `policy.context_length` and `limits` hold), more
than one segment for a trajectory, and our log-probs for its ratio: without vLLM, TRL computes those of the sampling
weights itself, and reads ours where `off_policy_mask_threshold` is set.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import rollout_service.config.arguments as arguments
from rollout_service.adapters import checks
from rollout_service.adapters.checks import TrainingDataError, Unscored
from rollout_service.errors import ConfigError
from rollout_service.record.trajectory import Trajectory
from rollout_service.record.turn_arrays import described
from rollout_service.redaction import shown

if TYPE_CHECKING:
    from rollout_service.client import RolloutClient
    from rollout_service.config import RolloutConfig
    from rollout_service.policy.weight_group import WeightGroup

Columns = dict[str, list[Any]]
RolloutFunc = Callable[[list[Any], Any], Columns]
Weights = Callable[[Any], Mapping[str, Any]]


def prompts(
    domain: str, split: str = "train", ids: list[str] | None = None, config: RolloutConfig | None = None
) -> list[dict[str, str]]:
    """Rows for a `datasets.Dataset`, one per task. The prompt is the task's name; the service renders the real one.

    Args:
        config: of the service, which leaves tasks out, see `TaskChoice`; None: all are there.

    Raises:
        TaskError: unknown domain, split or id, with the valid ones; or a named task is left out.
    """
    from rollout_service.tau2 import task_choice, tasks

    choose = tasks.references if config is None else task_choice.TaskChoice(config).references
    return [{"prompt": str(task)} for task in choose(domain, split, ids)]


def tau2_reward(completions: list[Any], rollout_reward: list[float | None] | None = None, **_: Any) -> list[Any]:
    """TRL's reward function: the official evaluator's reward of each trajectory. It is None, which TRL leaves out, for
    a masked trajectory without a score.

    Raises:
        TrainingDataError: the completions do not come from `rollout_func`.
    """
    if not isinstance(rollout_reward, list) or len(rollout_reward) != len(completions):
        raise TrainingDataError(
            f"rollout_reward is {shown(rollout_reward)}: these {len(completions)} completions were not made by "
            "the service.",
            "Give the trainer rollout_func=rollout_func(client) too.",
        )
    return rollout_reward


def rollout_func(
    client: RolloutClient,
    *,
    unscored: Unscored = "refuse",
    weights: Weights | None = None,
    group: WeightGroup | None = None,
) -> RolloutFunc:
    """Make the function that GRPOTrainer calls for completions.

    Args:
        unscored: what happens to an episode that has no reward after all attempts: `refuse` ends the training, `mask`
            gives TRL a completion that is not trained on.
        weights: makes the tensors for `client.update_weights` from the unwrapped model; called on every process. None:
            the model's `state_dict()`. Sharded models and adapters (FSDP, ZeRO-3, LoRA) need one that gathers and
            merges.
        group: process group of the main process that the tensors go through; None: Ray's object store. See
            `client.weight_group`.

    Returns:
        A function of (prompts, trainer). It gives for each prompt `prompt_ids`, `completion_ids`, `logprobs` (of the
        sampling policy; 0.0 where it did not sample) and `env_mask` (1 on sampled tokens), which TRL trains on, and
        `rollout_reward`, `trajectory_id` and `turn_facts` (see `rollout_service.record.turn_arrays.described`), which
        it passes to the reward functions; `tau2_reward` leaves the facts alone. It raises `TrainingDataError` for a
        missing reward or log-prob, a group that is not whole, another tokenizer than the trainer's, a token id
        that its model has no row for, more than one segment, or sampling that no importance ratio fits (see
        `checks.check_parameters`), and `ConfigError` for settings that would make the log-probs another policy's, and
        where the processes' clients are of several services.
    """
    arguments.choice("unscored", unscored, get_args(Unscored))
    if weights is not None and not callable(weights):
        raise ConfigError(f"weights is {shown(weights)}.", "Give a function of the model, or leave it out.")
    if not hasattr(client, "update_weights"):
        raise ConfigError(f"client is {shown(client)}.", "Give a RolloutClient.")
    synchronized = _Weights(client, weights or (lambda model: model.state_dict()), group)
    fingerprint = ""

    def roll_out(asked: list[Any], trainer: Any) -> Columns:
        nonlocal fingerprint
        if not fingerprint:
            _check_settings(client, trainer)
            fingerprint = checks.tokenizer_fingerprint(_tokenizer(trainer))
        synchronized(trainer)
        trajectories = _collected(client, asked)
        checks.check_rewards(trajectories, unscored)
        checks.check_tokenizers(trajectories, fingerprint)
        checks.check_vocabulary(trajectories, _embedding_rows(trainer))
        checks.check_logprobs(trajectories)
        return _columns(trajectories, _tokenizer(trainer).eos_token_id)

    return roll_out


class _Weights:
    """Gives the trainer's weights to the service after an optimizer step changed them."""

    def __init__(self, client: RolloutClient, weights: Weights, group: WeightGroup | None) -> None:
        self._client = client
        self._weights = weights
        self._group = group
        self._step: int | None = None
        """Optimizer step of the weights that the service has. None: it has the weights it started with, which may be
        any."""

    def __call__(self, trainer: Any) -> None:
        step = trainer.state.global_step
        if step == self._step:
            return
        accelerator = trainer.accelerator
        tensors = self._weights(accelerator.unwrap_model(trainer.model))
        before = self._client.weight_version()
        accelerator.wait_for_everyone()  # every process has read the version before it changes
        if accelerator.is_main_process:
            self._client.update_weights(tensors, group=self._group)
        accelerator.wait_for_everyone()  # no process may ask for episodes before the update
        if self._client.weight_version() == before:
            raise ConfigError(
                f"The trainer's weights did not reach this process's service: process {accelerator.process_index} of "
                f"{accelerator.num_processes} still sees weight version {before}, as its client runs another service "
                "than the main process's.",
                'Start one service on a Ray cluster and give every rank RolloutClient("auto").',
            )
        self._step = step


def _check_settings(client: RolloutClient, trainer: Any) -> None:
    policy = client.config.policy
    if policy.engine == "scripted":
        raise ConfigError(
            "policy.engine is 'scripted': it has no weights to train.", "Serve the model: transformers or sglang."
        )
    checks.check_parameters("policy.sampling", policy.sampling.model_dump())
    theirs = getattr(trainer, "chat_template_kwargs", None)
    checks.check_template_arguments(policy.template_arguments, theirs, "GRPOConfig(chat_template_kwargs=...)")
    for name, theirs in (
        ("temperature", trainer.temperature),
        ("top_p", trainer.top_p),
        ("top_k", trainer.top_k or -1),  # TRL's value for no limit is 0
    ):
        if (ours := getattr(policy.sampling, name)) != theirs:
            raise ConfigError(
                f"policy.sampling.{name} is {ours}, but the trainer's is {theirs}: its log-probs would be of another "
                "distribution than that which samples.",
                f"Give GRPOConfig({name}=...) and the service the same.",
            )


def _collected(client: RolloutClient, asked: Sequence[Any]) -> list[Trajectory]:
    """A trajectory for each prompt, in order. Tasks with equal numbers of prompts share a collection, and all
    collections run at the same time."""
    tasks = [_named_task(prompt) for prompt in asked]
    wanted = Counter(tasks)
    selections: dict[tuple[str, str, int], list[str]] = {}
    for (domain, split, task_id), count in wanted.items():
        selections.setdefault((domain, split, count), []).append(task_id)
    found: dict[tuple[str, str, str], Iterator[Trajectory]] = {}
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(
                contextlib.closing(client.stream(group_size=count, domain=domain, split=split, ids=ids))
            )
            for (domain, split, count), ids in selections.items()
        ]
        for stream in streams:
            no_data: list[list[Trajectory]] = []
            stream.withheld = lambda group, _, no_data=no_data: no_data.append(checks.without_scores(group))
            for group in itertools.chain(stream, no_data):  # the stream has ended before the second is begun
                task = group[0].task
                key = task.domain, task.split, task.task_id
                checks.check_groups(group, wanted.get(key))
                found[key] = iter(group)
    if missing := sorted(wanted.keys() - found.keys()):
        raise TrainingDataError(f"The group of {'/'.join(missing[0])!r} never came.", "See client.status().")
    return [next(found[task]) for task in tasks]


def _columns(trajectories: Sequence[Trajectory], end_id: int) -> Columns:
    names = ("prompt_ids", "completion_ids", "logprobs", "env_mask", "rollout_reward", "trajectory_id", "turn_facts")
    columns: Columns = {name: [] for name in names}
    for trajectory in trajectories:
        for name, value in zip(names, _sample(trajectory, end_id), strict=True):
            columns[name].append(value)
    return columns


def _sample(trajectory: Trajectory, end_id: int) -> tuple[Any, ...]:
    if not trajectory.segments:  # nothing was sampled: a fault, or the prompt did not fit. TRL wants a token of all.
        return [end_id], [end_id], [0.0], [0], None, trajectory.trajectory_id, []
    segment = checks.only_segment(trajectory)
    start = segment.prompt_length
    mask = segment.loss_mask[start:] * trajectory.is_scored
    return (
        segment.token_ids[:start].tolist(),
        segment.token_ids[start:].tolist(),
        segment.logprobs[start:].tolist(),
        mask.tolist(),
        trajectory.reward if trajectory.is_scored else None,
        trajectory.trajectory_id,
        described(segment, segment.prompt_length),
    )


def _embedding_rows(trainer: Any) -> int | None:
    config: Any = getattr(trainer.model, "config", None)
    if hasattr(config, "get_text_config"):  # a vision model keeps the number there
        config = config.get_text_config()
    rows: int | None = getattr(config, "vocab_size", None)
    return rows


def _tokenizer(trainer: Any) -> Any:
    return getattr(trainer.processing_class, "tokenizer", trainer.processing_class)


def _named_task(prompt: Any) -> tuple[str, str, str]:
    """Domain, split and id of the task that a row of `prompts` names. An id may contain slashes."""
    parts = prompt.split("/", 2) if isinstance(prompt, str) else []
    if len(parts) != 3:
        raise TrainingDataError(
            f"The prompt {prompt!r} names no task.", "Make the dataset of prompts(domain, split), whose rows do."
        )
    return parts[0], parts[1], parts[2]
