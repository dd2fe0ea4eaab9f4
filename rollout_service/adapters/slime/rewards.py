"""Rewards of a slime batch: normalised by group, and which groups are worth training on.

Invariant: an episode counts once, however many samples its segments give. An episode without a reward does not count.
slime's own normalisation counts by position, so it takes a batch with siblings or missing samples for one group
(`_post_process_rewards` in `slime/ray/rollout.py`, 0.3.1).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

import rollout_service.logs as logs
from rollout_service.adapters.checks import TrainingDataError
from rollout_service.adapters.slime.samples import METADATA, episode_key, flat, is_scored
from rollout_service.adapters.slime.types import types

_log = logs.logger(__name__)

GROUP_NORMALISED = ("grpo", "gspo", "cispo", "reinforce_plus_plus_baseline")
"""slime's estimators that subtract the group's mean reward."""

_DIVIDED_BY_STD = ("grpo", "gspo", "cispo")
_EPSILON = 1e-6


def reward_post_process(args: Any, samples: list[Any]) -> tuple[list[float], list[float]]:
    """slime's `--custom-reward-post-process-path`.

    Args:
        args: slime's; `advantage_estimator`, `rewards_normalization`, `grpo_std_normalization` and
            `n_samples_per_prompt` are used.
        samples: the flat batch, in any order.

    Returns:
        Two lists of floats, in the samples' order. First the raw rewards, for slime's logs; a sample without a reward
        gets the mean of the batch's scored samples, so that the logged mean is theirs. Second the values to train with:
        for the estimators above the reward minus the group's mean, divided for all but the last of them by the group's
        deviation (divisor n - 1) plus 1e-6; 0 for a sample without a reward.

    Raises:
        TrainingDataError: only some samples have log-probs, a group does not have n_samples_per_prompt episodes, or no
            episode has a reward.
    """
    _check_logprobs(samples)
    scored = [is_scored(sample) for sample in samples]
    rewards = [_reward(args, sample) if there else 0.0 for sample, there in zip(samples, scored, strict=True)]
    known = [reward for reward, there in zip(rewards, scored, strict=True) if there]
    if not known:
        raise TrainingDataError(
            f"None of the {len(samples)} samples has a reward: {_faults(samples) or 'all were cancelled'}.",
            "Fix what the faults name. A step without any reward would train on nothing.",
        )
    mean = float(np.mean(known))
    raw = [reward if there else mean for reward, there in zip(rewards, scored, strict=True)]
    estimator = getattr(args, "advantage_estimator", "grpo")
    if estimator not in GROUP_NORMALISED or not getattr(args, "rewards_normalization", True):
        return raw, [reward if there else 0.0 for reward, there in zip(rewards, scored, strict=True)]
    divides = estimator in _DIVIDED_BY_STD and getattr(args, "grpo_std_normalization", True)
    statistics = _group_statistics(args, samples, rewards, scored)
    normalised = []
    for sample, reward, there in zip(samples, rewards, scored, strict=True):
        centre, deviation = statistics[sample.group_index]
        normalised.append((reward - centre) / (deviation + _EPSILON if divides else 1.0) if there else 0.0)
    return raw, normalised


def keep_informative(args: Any, samples: list[Any], **_: Any) -> Any:
    """slime's `--dynamic-sampling-filter-path`: keeps a group if its rewards differ. Unlike slime's own, it accepts
    groups in which an episode is a list of samples.

    Returns:
        slime's `DynamicFilterOutput`. The reason is the reward that all had, or that fewer than two were scored.
    """
    rewards = {episode_key(sample): _reward(args, sample) for sample in flat(samples) if is_scored(sample)}
    output = types().filter_output
    if len(rewards) < 2:
        return output(keep=False, reason="unscored")
    if len(set(rewards.values())) == 1:
        return output(keep=False, reason=f"all_{next(iter(rewards.values())):g}")
    return output(keep=True)


def report(args: Any, all_groups: list[Any], data_source: Any) -> None:
    """slime's `--rollout-all-samples-process-path`: logs outcomes, rewards by domain and faults of a whole rollout,
    including the groups that a filter dropped."""
    episodes = list({episode_key(sample): sample for sample in flat(all_groups)}.values())
    about = [sample.metadata.get(METADATA, {}) for sample in episodes]
    rewards: dict[str, list[float]] = defaultdict(list)
    for sample, what in zip(episodes, about, strict=True):
        if is_scored(sample):
            rewards[what.get("task", {}).get("domain", "?")].append(_reward(args, sample))
    outcomes = Counter(what.get("outcome", "not started") for what in about)
    _log.info(
        "%d episodes (%s); mean reward %s",
        len(episodes),
        ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items())),
        ", ".join(f"{name} {np.mean(values):.3f} of {len(values)}" for name, values in sorted(rewards.items())) or "-",
    )
    if faults := _faults(episodes):
        _log.warning("Without a reward, and left out of training: %s", faults)


def _group_statistics(
    args: Any, samples: list[Any], rewards: list[float], scored: list[bool]
) -> dict[int, tuple[float, float]]:
    """Mean and deviation of the rewards, by group index. Both are 0 if no episode of the group has a reward."""
    groups: dict[int, dict[Any, float | None]] = defaultdict(dict)
    for sample, reward, there in zip(samples, rewards, scored, strict=True):
        groups[sample.group_index][episode_key(sample)] = reward if there else None
    size = getattr(args, "n_samples_per_prompt", None)
    for index, episodes in groups.items():
        if index is None or (size is not None and len(episodes) != size):
            raise TrainingDataError(
                f"Group {index} has {len(episodes)} episodes, not n_samples_per_prompt={size}.",
                "Hand slime whole groups: an aborted episode stays in its group as a placeholder.",
            )
    return {index: _statistics([r for r in episodes.values() if r is not None]) for index, episodes in groups.items()}


def _statistics(rewards: list[float]) -> tuple[float, float]:
    if not rewards:
        return 0.0, 0.0
    return float(np.mean(rewards)), float(np.std(rewards, ddof=1)) if len(rewards) > 1 else 0.0


def _check_logprobs(samples: list[Any]) -> None:
    without = [sample.index for sample in samples if sample.rollout_log_probs is None]
    if without and len(without) < len(samples):
        raise TrainingDataError(
            f"{len(without)} of {len(samples)} samples have no log-probs (indices {without[:5]}); slime needs them on "
            "all or on none.",
            "Make every sample of the batch with rollout_service.adapters.slime.generate.",
        )
    wrong = [s.index for s in samples if s.rollout_log_probs is not None and _misaligned(s)]
    if wrong:
        raise TrainingDataError(
            f"Samples {wrong[:5]} have log-probs or a loss mask of another length than their response.",
            "Look for a hook that changes samples after generate.",
        )


def _misaligned(sample: Any) -> bool:
    mask = sample.response_length if sample.loss_mask is None else len(sample.loss_mask)
    return bool(len(sample.rollout_log_probs) != sample.response_length or mask != sample.response_length)


def _reward(args: Any, sample: Any) -> float:
    key = getattr(args, "reward_key", None)
    return float(sample.reward[key] if key and isinstance(sample.reward, dict) else sample.reward)


def _faults(samples: list[Any]) -> str:
    """The three most frequent faults, with their counts."""
    faults = [(sample.metadata or {}).get(METADATA, {}).get("fault") for sample in samples]
    counted = Counter(f"{fault['kind']}: {fault['message']}" for fault in faults if fault)
    return "; ".join(f"{count} × {text}" for text, count in counted.most_common(3))
