"""slime's hooks, filled with this service's τ² episodes. Tested against slime 0.3.1.

Invariant: whatever happens to an episode, slime gets a sample that it can count. Its reward is the official
evaluator's, or it is an aborted placeholder that is not trained on. slime's event loop only waits.

| slime's flag | here |
|---|---|
| `--custom-generate-function-path` | `generate`: one episode per sample, slime keeps its own rollout loop |
| `--rollout-function-path`, `--eval-function-path` | `generate_rollout`: a whole batch at a time instead |
| `--custom-reward-post-process-path` | `reward_post_process`: needed with either |
| `--dynamic-sampling-filter-path` | `keep_informative` |
| `--rollout-all-samples-process-path` | `report` |

Settings: see `rollout_service.adapters.slime.settings`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import sys
from collections import Counter
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import rollout_service.adapters.slime.service as slime_service
import rollout_service.adapters.slime.settings as slime_settings
import rollout_service.logs as logs
from rollout_service.adapters.slime.samples import cancelled, filled, flat, is_scored
from rollout_service.adapters.slime.service import Service
from rollout_service.adapters.slime.types import types
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, ServiceError
from rollout_service.record.trajectory import Trajectory

_log = logs.logger(__name__)

_STOP_POLL_SECONDS = 0.25
"""Longest time until an episode notices that slime has enough samples."""


async def generate(args: Any, sample: Any, sampling_params: dict[str, Any], evaluation: bool = False) -> Any:
    """slime's `--custom-generate-function-path`: one τ² episode (`generate_and_rm`, `slime/rollout/sglang_rollout.py`).

    Args:
        sample: its metadata names the task, see `prepare_data`; its index seeds the episode.
        sampling_params: parameters of every turn.
        evaluation: return only one sample, even of an episode with several, so that its reward counts once.

    Returns:
        slime's `Sample`; with `policy.history: template` a list with one sample for each segment. An episode without a
        reward becomes an aborted placeholder. Its reward is 0 in training, where `reward_post_process` leaves it out,
        and NaN in evaluation, because slime would average a number in (`generate_rollout` leaves it out instead).

    Raises:
        RolloutError: the episode cannot be played at all, because of settings, task, tokenizer, router or service.
    """
    service = await slime_service.running(args)
    task, seed = slime_settings.task_of(sample), _seed(args, sample.index)
    episode = service.play(task, seed, slime_settings.sampling(sampling_params))
    played = await _unless_stopped(episode, args, evaluation)
    trajectory = cancelled(task, seed) if played is None else played[0]
    return _evaluated(sample, trajectory) if evaluation else _shaped(service, sample, trajectory)


def generate_rollout(args: Any, rollout_id: int, data_source: Any, evaluation: bool = False) -> Any:
    """slime's `--rollout-function-path` and `--eval-function-path`: a whole batch, group by group.

    For training it takes prompts from the data source until `rollout_batch_size` groups are kept (by
    `--dynamic-sampling-filter-path`, if that is set), and then ends the episodes that still run. For evaluation it
    plays every prompt of `args.eval_datasets` (JSONL files of `prepare_data`) `n_samples_per_eval_prompt` times.

    Returns:
        slime's `RolloutFnTrainOutput`: groups by index, each of `n_samples_per_prompt` samples (or lists of them). Or
        its `RolloutFnEvalOutput`: for each data set `rewards`, `truncated` and `samples`, prompt by prompt. A prompt
        of which an episode has no reward is left out with all its episodes, because slime counts groups by position;
        `metrics` has the number of such episodes and prompts.

    Raises:
        RolloutError: as `generate`; or slime asks for something that only its own loop does, or every prompt of a data
            set was left out.
    """
    slime_settings.check_rollout(args, evaluation)
    return asyncio.run(_evaluate(args) if evaluation else _train(args, data_source))


# One episode ---------------------------------------------------------------------------------------------------------


async def _unless_stopped(
    episode: Coroutine[Any, Any, list[Trajectory]], args: Any, evaluation: bool
) -> list[Trajectory] | None:
    """The episode's trajectories. None: slime stopped the rollout first, which ends the episode.

    slime cancels nothing. It sets a flag, aborts its engines' requests until they are idle, and waits for every
    `generate` (`abort`, `slime/rollout/sglang_rollout.py`). An episode that did not see the flag would continue and
    keep the engines busy. This function returns when the episode sends them nothing more. slime then puts them to sleep
    or changes their weights.
    """
    task = asyncio.ensure_future(episode)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_STOP_POLL_SECONDS)
            if not task.done() and not evaluation and _stopped(args):
                task.cancel()
                await asyncio.wait({task})
                return None
        return task.result()
    finally:
        task.cancel()


def _stopped(args: Any) -> bool:
    """Whether slime set its flag. If slime's loop called us, its module is loaded and its state exists."""
    module = sys.modules.get("slime.rollout.sglang_rollout")
    return module is not None and bool(module.GenerateState(args).aborted)


def _shaped(service: Service, sample: Any, trajectory: Trajectory) -> Any:
    samples = filled(sample, trajectory)
    return samples if service.fans_out else samples[0]


def _evaluated(sample: Any, trajectory: Trajectory) -> Any:
    last = filled(sample, trajectory)[-1]
    if not is_scored(last):
        last.reward = math.nan
    return last


def _seed(args: Any, number: int | None) -> int:
    """An episode seed that differs between samples (or groups) and runs. The same run repeats its episodes."""
    return (int(getattr(args, "rollout_seed", 0)) << 32) + (number or 0)


# A batch -------------------------------------------------------------------------------------------------------------


async def _train(args: Any, data_source: Any) -> Any:
    service = await slime_service.running(args)
    how = slime_settings.sampling(
        {
            "temperature": args.rollout_temperature,
            "top_p": args.rollout_top_p,
            "top_k": args.rollout_top_k,
            "max_new_tokens": args.rollout_max_response_len,
            "stop": getattr(args, "rollout_stop", None),
            "stop_token_ids": getattr(args, "rollout_stop_token_ids", None),
        }
    )
    wanted, at_a_time = args.rollout_batch_size, getattr(args, "over_sampling_batch_size", None) or 1
    kept: list[list[Any]] = []
    made: list[list[Any]] = []
    dropped: Counter[str] = Counter()
    pending: set[asyncio.Task[list[Any]]] = set()
    try:
        while len(kept) < wanted:
            if (missing := wanted - len(kept) - len(pending)) > 0:
                prompts = data_source.get_samples(max(missing, at_a_time))
                if not prompts and not pending:
                    raise ConfigError(
                        f"The data source is empty after {len(kept)} of {wanted} groups.", "Give it prompts."
                    )
                pending |= {asyncio.ensure_future(_group(args, service, group, how)) for group in prompts}
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for group in [task.result() for task in done]:
                made.append(group)
                reason = _rejected(args, group, len(kept) + len(pending) < wanted)
                if reason is None:
                    kept.append(group)
                else:
                    dropped[reason] += 1
    finally:
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)  # nothing may reach the engines once slime has its samples
    kept = sorted(kept[:wanted], key=_first_index)
    if filter_samples := _hook(args, "rollout_sample_filter_path"):
        filter_samples(args, kept)
    if process := _hook(args, "rollout_all_samples_process_path"):
        process(args, sorted(made, key=_first_index), data_source)
    metrics = {f"rollout/dynamic_filter/drop_{reason}": count for reason, count in dropped.items()}
    return types().train_output(samples=kept, metrics=metrics)


async def _group(args: Any, service: Service, group: list[Any], how: Sampling) -> list[Any]:
    seed = _seed(args, group[0].group_index)
    trajectories = await service.play(slime_settings.task_of(group[0]), seed, how, len(group))
    return [_shaped(service, *pair) for pair in zip(group, trajectories, strict=True)]


def _rejected(args: Any, group: list[Any], insufficient: bool) -> str | None:
    """Why slime's filter drops the group. None: it is kept. `insufficient`: without it the batch would be too small."""
    keep = _hook(args, "dynamic_sampling_filter_path")
    verdict = True if keep is None else keep(args, group)
    if getattr(verdict, "keep", verdict) or (insufficient and getattr(verdict, "keep_when_insufficient", False)):
        return None
    return getattr(verdict, "reason", None) or "unnamed"


def _first_index(group: list[Any]) -> int:
    return int(flat(group)[0].index or 0)


def _hook(args: Any, name: str) -> Any:
    path = getattr(args, name, None)
    if path is None:
        return None
    module, _, attribute = path.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


async def _evaluate(args: Any) -> Any:
    datasets = getattr(args, "eval_datasets", None) or []
    sampled = [slime_settings.evaluation_sampling(dataset) for dataset in datasets]  # all, before any is played
    service = await slime_service.running(args)
    data, metrics = {}, {}
    for dataset, how in zip(datasets, sampled, strict=True):
        groups = await _evaluate_dataset(args, service, dataset, how)
        whole = [group for group in groups if all(map(is_scored, group))]
        if not whole:
            raise ServiceError(
                f"No prompt of evaluation set {dataset.name!r} has a reward for each of its episodes.",
                "The log names each fault.",
            )
        samples = flat(whole)
        data[dataset.name] = {
            "rewards": [sample.reward for sample in samples],
            "truncated": [sample.status.value == "truncated" for sample in samples],
            "samples": samples,
        }
        metrics[f"eval/{dataset.name}/unscored"] = sum(not is_scored(sample) for sample in flat(groups))
        metrics[f"eval/{dataset.name}/prompts_left_out"] = len(groups) - len(whole)
    return types().eval_output(data=data, metrics=metrics)


async def _evaluate_dataset(args: Any, service: Service, dataset: Any, how: Sampling) -> list[list[Any]]:
    """The samples of each prompt."""
    prompts, times = list(_prompts(dataset)), dataset.n_samples_per_eval_prompt or 1
    played = await asyncio.gather(
        *(service.play(slime_settings.task_of(p), _seed(args, number), how, times) for number, p in enumerate(prompts))
    )
    groups = [[_evaluated(prompt, t) for t in group] for prompt, group in zip(prompts, played, strict=True)]
    for number, sample in enumerate(flat(groups)):
        sample.index = number
    return groups


def _prompts(dataset: Any) -> Iterator[Any]:
    try:
        lines = Path(dataset.path).read_text().splitlines()
    except OSError as error:
        raise ConfigError(
            f"The evaluation set {dataset.path} cannot be read: {error.strerror}.",
            "Write it with `rollout-service prepare-data`.",
        ) from error
    for line in filter(str.strip, lines):
        row = json.loads(line)
        metadata = row.get(dataset.metadata_key or "metadata") or {}
        yield types().sample(prompt=row.get(dataset.input_key or "prompt", ""), metadata=metadata)
