"""verl: a trajectory as its AgentLoopOutput, a batch as the tensors of its DataProto.

Invariant: the layout is verl's own: prompts padded on the left to `prompt_length`, responses on the right to
`response_length`, and everything about responses aligned with them. Nothing is cut: what does not fit is refused.

    output = AgentLoopOutput(**agent_loop_output(trajectory))
    tensors, others = data_proto(batch, pad_token_id, prompt_length=4096, response_length=28672)
    data = DataProto.from_dict(tensors=tensors, non_tensors=others)

Tested against verl 0.9.1; nothing here imports it. Where verl's own workers are to play the episodes, and its servers
to sample, see `rollout_service.adapters.verl.loop`.

For a batch of the service's, weights are not verl's affair: its trainer must give the service new ones with
`client.update_weights`. Its `rollout.temperature` must be the service's `policy.sampling.temperature`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import rollout_service.config.arguments as arguments
from rollout_service.adapters import checks
from rollout_service.adapters.checks import Unscored
from rollout_service.errors import ConfigError
from rollout_service.record.batch import TrajectoryBatch
from rollout_service.record.trajectory import TokenSegment, Trajectory
from rollout_service.record.turn_arrays import described

if TYPE_CHECKING:
    import torch

_MOST_LENGTH = 2**24
"""Tokens of a row. No model has a context that long; a row of such a width would fill the memory first."""


def agent_loop_output(
    trajectory: Trajectory, *, tokenizer_fingerprint: str | None = None, vocabulary_size: int | None = None
) -> dict[str, Any]:
    """The fields of verl's AgentLoopOutput, plain values. `num_turns` counts τ²'s messages, of all sides.

    How the tokens were sampled is not checked: verl validates through agent loops too, and greedily.

    Args:
        tokenizer_fingerprint: of the trainer's tokenizer, see `checks.tokenizer_fingerprint`.
        vocabulary_size: rows of the trained model's embedding; None: as many as the tokenizer has ids.

    Raises:
        TrainingDataError: no reward, another tokenizer, a token id that the model has no row for, a missing log-prob,
            or not exactly one segment.
    """
    TrajectoryBatch([trajectory])  # refuses what is no trajectory
    checks.check_rewards([trajectory], "refuse")
    checks.check_tokenizers([trajectory], tokenizer_fingerprint)
    checks.check_vocabulary([trajectory], vocabulary_size)
    checks.check_logprobs([trajectory])
    segment = checks.only_segment(trajectory)
    start = segment.prompt_length
    timing = trajectory.timing
    return {
        "prompt_ids": segment.token_ids[:start].tolist(),
        "response_ids": segment.token_ids[start:].tolist(),
        "response_mask": segment.loss_mask[start:].tolist(),
        "response_logprobs": segment.logprobs[start:].tolist(),
        "reward_score": trajectory.reward,
        "num_turns": len(trajectory.messages),
        "metrics": {
            "generate_sequences": timing.policy_seconds,
            "tool_calls": timing.user_seconds + timing.environment_seconds,
            "compute_score": timing.evaluation_seconds,
        },
        "extra_fields": _extra_fields(trajectory),
    }


def data_proto(
    trajectories: Iterable[Trajectory],
    pad_token_id: int,
    *,
    prompt_length: int,
    response_length: int,
    group_size: int | None = None,
    unscored: Unscored = "refuse",
    tokenizer_fingerprint: str | None = None,
    vocabulary_size: int | None = None,
) -> tuple[dict[str, torch.Tensor], dict[str, npt.NDArray[Any]]]:
    """What `DataProto.from_dict` takes as `tensors` and `non_tensors`, one row per trajectory.

    Args:
        prompt_length, response_length: `rollout.prompt_length` and `rollout.response_length` of verl's configuration.
        group_size, unscored, tokenizer_fingerprint, vocabulary_size: see `rollout_service.adapters.checks`. verl has
            no word for a missing reward, so what is masked is left out, and its `uid` has fewer rows.

    Returns:
        Tensors by name, with P and R the two lengths: `prompts` int64[rows, P]; `responses`, `response_mask`
        int64[rows, R]; `input_ids`, `attention_mask`, `position_ids` int64[rows, P + R]; `rollout_log_probs`
        float32[rows, R], 0 where the mask is 0; `rm_scores` float32[rows, R], the reward on the last token of the
        response. And arrays of objects: `uid`, by which verl groups (our `group_id`), `__num_turns__` int32[rows] and
        those of `agent_loop_output`'s `extra_fields`.

    Raises:
        TrainingDataError: no reward, a group that is not whole, mixed tokenizers, a token id that the model has no row
            for, a missing log-prob, sampling that no importance ratio fits (see `checks.check_sampling`), or not
            exactly one segment.
        ConfigError: a prompt or a response that is too long.
    """
    pad_token_id = arguments.whole("pad_token_id", pad_token_id, 0, arguments.MOST_TOKEN_ID)
    prompt_length = arguments.whole("prompt_length", prompt_length, 1, _MOST_LENGTH)
    response_length = arguments.whole("response_length", response_length, 1, _MOST_LENGTH)
    batch = TrajectoryBatch(trajectories)
    checks.check_rewards(batch, unscored)
    checks.check_groups(batch, group_size)
    batch = batch.filter(lambda trajectory: trajectory.is_scored)
    checks.check_tokenizers(batch, tokenizer_fingerprint)
    checks.check_vocabulary(batch, vocabulary_size)
    checks.check_logprobs(batch)
    checks.check_sampling(batch)
    segments = [_fitting(trajectory, prompt_length, response_length) for trajectory in batch]
    return _tensors(batch, segments, pad_token_id, prompt_length, response_length), _others(batch)


def _fitting(trajectory: Trajectory, prompt_length: int, response_length: int) -> TokenSegment:
    segment = checks.only_segment(trajectory)
    for name, length, limit in (
        ("prompt_length", segment.prompt_length, prompt_length),
        ("response_length", segment.response_length, response_length),
    ):
        if length > limit:
            raise ConfigError(
                f"Trajectory {trajectory.trajectory_id!r} has a {name} of {length}, more than {name}={limit}.",
                f"Raise rollout.{name}, or bound the episodes with policy.response_length and limits.max_turns.",
            )
    return segment


def _tensors(
    batch: TrajectoryBatch, segments: list[TokenSegment], pad_token_id: int, prompt_length: int, response_length: int
) -> dict[str, torch.Tensor]:
    """Every segment laid down so that its response starts at `prompt_length`."""
    import torch

    shape = len(segments), prompt_length + response_length
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    response_mask = np.zeros(shape, dtype=np.int64)
    logprobs = np.zeros(shape, dtype=np.float32)
    scores = np.zeros(shape, dtype=np.float32)
    for row, segment in enumerate(segments):
        start = prompt_length - segment.prompt_length
        end = start + len(segment.token_ids)
        input_ids[row, start:end] = segment.token_ids
        attention_mask[row, start:end] = 1
        response_mask[row, start:end] = segment.loss_mask
        logprobs[row, start:end] = segment.logprobs
        scores[row, end - 1] = batch.rewards[row]
    arrays = {
        "prompts": input_ids[:, :prompt_length],
        "responses": input_ids[:, prompt_length:],
        "response_mask": response_mask[:, prompt_length:],
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": np.maximum(attention_mask.cumsum(-1) - 1, 0),
        "rollout_log_probs": logprobs[:, prompt_length:],
        "rm_scores": scores[:, prompt_length:],
    }
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def _others(batch: TrajectoryBatch) -> dict[str, npt.NDArray[Any]]:
    rows = [{"uid": trajectory.group_id, **_extra_fields(trajectory)} for trajectory in batch]
    names = rows[0] if rows else {}
    objects = {name: _objects([row[name] for row in rows]) for name in names}
    return objects | {"__num_turns__": np.array([len(trajectory.messages) for trajectory in batch], dtype=np.int32)}


def _objects(values: list[Any]) -> npt.NDArray[Any]:
    array = np.empty(len(values), dtype=object)  # np.array would take equally long lists apart
    array[:] = values
    return array


def _extra_fields(trajectory: Trajectory) -> dict[str, Any]:
    sampled, segment = trajectory.weight_version_range, checks.only_segment(trajectory)
    return {
        "min_global_steps": trajectory.oldest_version,
        "max_global_steps": None if sampled is None else sampled[1],
        "trajectory_id": trajectory.trajectory_id,
        "task_id": str(trajectory.task),
        "outcome": str(trajectory.outcome),
        "turn_facts": described(segment, segment.prompt_length),
    }
