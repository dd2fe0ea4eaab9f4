"""Trajectories as slime's samples. Pure: no Ray, no slime.

Invariant: one sample per segment, and nothing is cut. `tokens` is the segment as the engine saw and sampled it. Its
last `response_length` tokens follow the opening prompt, and `loss_mask` and `rollout_log_probs` are aligned with them.
`weight_versions` has one entry per turn: the oldest version of its tokens and of the keys and values behind them, so
staleness counted from it is never too small. Every sample has log-probs, because slime decides from a batch's first
sample whether all have them (`slime/ray/rollout.py`).

An episode without a score (after a fault of the infrastructure, a cancellation or the wall time, or without a policy
turn) becomes a placeholder that slime does not train on: two tokens, mask 0, `remove_sample`, status `aborted`.
`reward_post_process` leaves it out of its group. Rules: slime 0.3.1, `slime/utils/types.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rollout_service.adapters.checks import TrainingDataError, check_logprobs
from rollout_service.record.trajectory import Outcome, TaskRef, TokenSegment, Trajectory
from rollout_service.record.turn_arrays import described
from rollout_service.termination import TerminationReason

METADATA = "rollout_service"
"""Key in `Sample.metadata` of the description of a sample's episode."""

_STATUS = {
    Outcome.COMPLETED: "completed",
    Outcome.TRUNCATED: "truncated",
    Outcome.AGENT_ERROR: "completed",
    Outcome.ABORTED: "aborted",
}
"""An episode in which the policy broke the protocol is `completed`, with its reward, and never slime's `failed`. When a
group comes back from its buffer, slime repeats the samples that are neither `completed` nor `truncated`, and a policy
whose failures are repeated earns too much. The metadata has the outcome."""


def sample_dicts(trajectory: Trajectory) -> list[dict[str, Any]]:
    """The values of slime's samples for this episode: one dict per segment, with the names of `Sample.to_dict`.

    They do not hold the identity (`index`, `group_index`, `prompt`, …), which is slime's. Only the first of several has
    the seconds outside of generation, so that a sum over samples counts them once.

    Raises:
        TrainingDataError: a segment's arrays differ in length, or a sampled token has no finite log-prob.
    """
    timing = trajectory.timing
    waited = timing.user_seconds + timing.environment_seconds + timing.evaluation_seconds
    if not trajectory.is_scored:
        return [_placeholder(trajectory) | {"non_generation_time": waited}]
    check_logprobs([trajectory])
    return [
        _of_segment(trajectory, number) | {"non_generation_time": 0.0 if number else waited}
        for number in range(len(trajectory.segments))
    ]


def filled(sample: Any, trajectory: Trajectory) -> list[Any]:
    """slime's `sample`, filled with the episode: one copy per segment. Siblings share a `rollout_id`.

    Raises:
        TrainingDataError: as `sample_dicts`; or there are several segments, and the sample has no number.
    """
    rows = sample_dicts(trajectory)
    rollout_id = sample.index if sample.rollout_id is None else sample.rollout_id
    if rollout_id is None and len(rows) > 1:
        raise TrainingDataError(
            f"A sample of {trajectory.trajectory_id} has neither index nor rollout_id, and its episode gives "
            f"{len(rows)} samples.",
            "Let the data source number its samples, as slime's own does.",
        )
    common = sample.to_dict() | {"rollout_id": rollout_id}
    return [
        type(sample).from_dict(common | row | {"metadata": {**(sample.metadata or {}), **row["metadata"]}})
        for row in rows
    ]


def flat(samples: Any) -> list[Any]:
    """The samples of a group or a batch, however deeply nested."""
    return [item for part in samples for item in flat(part)] if isinstance(samples, list) else [samples]


def is_scored(sample: Any) -> bool:
    """Whether the sample has a real reward, not a placeholder's."""
    return bool(sample.status.value != "aborted" and sample.reward is not None)


def episode_key(sample: Any) -> Any:
    """A key that differs between the episodes of a batch. Siblings have the same one."""
    return id(sample) if sample.rollout_id is None else sample.rollout_id


def cancelled(task: TaskRef, seed: int) -> Trajectory:
    """The trajectory of an episode that was stopped before its end."""
    return Trajectory(
        trajectory_id="", collection_id="", group_id="", sample_index=0, task=task, seed=seed, attempt=1,
        outcome=Outcome.ABORTED, termination_reason=str(TerminationReason.CANCELLED), reward=None,
    )  # fmt: skip


def _of_segment(trajectory: Trajectory, number: int) -> dict[str, Any]:
    segment = trajectory.segments[number]
    _check_segment(segment, f"Segment {number} of {trajectory.trajectory_id}")
    response = slice(segment.prompt_length, None)
    return {
        "tokens": segment.token_ids.tolist(),
        "response": _text(trajectory, segment),
        "response_length": segment.response_length,
        "loss_mask": segment.loss_mask[response].tolist(),
        "rollout_log_probs": segment.logprobs[response].tolist(),
        "weight_versions": [str(segment.oldest_version_of(turn)) for turn in segment.turns],
        "reward": trajectory.reward,
        "status": _STATUS[trajectory.outcome],
        "remove_sample": False,
        "prefix_cache_info": {
            "cached_tokens": sum(turn.cached_tokens for turn in segment.turns),
            "total_prompt_tokens": sum(turn.start for turn in segment.turns),
        },
        "metadata": {
            METADATA: _metadata(trajectory, number) | {"turn_facts": described(segment, segment.prompt_length)}
        },
    }


def _placeholder(trajectory: Trajectory) -> dict[str, Any]:
    """A sample of two tokens, because slime needs at least one in the prompt and one in the response."""
    return {
        "tokens": [0, 0],
        "response": "",
        "response_length": 1,
        "loss_mask": [0],
        "rollout_log_probs": [0.0],
        "weight_versions": [],
        "reward": 0.0,
        "status": "aborted",
        "remove_sample": True,
        "prefix_cache_info": {"cached_tokens": 0, "total_prompt_tokens": 0},
        "metadata": {METADATA: _metadata(trajectory, 0) | {"turn_facts": []}},
    }


def _metadata(trajectory: Trajectory, number: int) -> dict[str, Any]:
    fault = trajectory.fault
    return {
        "trajectory_id": trajectory.trajectory_id,
        "task": asdict(trajectory.task),
        "seed": trajectory.seed,
        "attempt": trajectory.attempt,
        "outcome": str(trajectory.outcome),
        "termination_reason": trajectory.termination_reason,
        "fault": None if fault is None else {"kind": str(fault.kind), "error": fault.error, "message": fault.message},
        "turns": len(trajectory.turns),
        "malformed_calls": trajectory.malformed_call_count,
        "segment": number,
        "segments": len(trajectory.segments),
    }


def _check_segment(segment: TokenSegment, name: str) -> None:
    lengths = {len(segment.token_ids), len(segment.loss_mask), len(segment.logprobs), len(segment.weight_versions)}
    if len(lengths) != 1 or not 0 < segment.prompt_length < len(segment.token_ids):
        raise TrainingDataError(
            f"{name}: tokens, mask, log-probs and versions are of {sorted(lengths)} entries, with a prompt of "
            f"{segment.prompt_length}.",
            "`rollout-service verify` says what else is wrong with the trajectory.",
        )
    if segment.loss_mask[: segment.prompt_length].any():
        raise TrainingDataError(f"{name} has a sampled token in its prompt.", "`rollout-service verify` says which.")


def _text(trajectory: Trajectory, segment: TokenSegment) -> str:
    """What the policy said in the segment, for slime's logs. Training reads only `tokens`."""
    spoken = [trajectory.messages[turn.message_index] for turn in segment.turns if turn.message_index is not None]
    return "\n".join(_said(message) for message in spoken)


def _said(message: dict[str, Any]) -> str:
    calls: Sequence[dict[str, Any]] = message.get("tool_calls") or ()
    written = [f"{call['name']}({json.dumps(call['arguments'], ensure_ascii=False)})" for call in calls]
    return "\n".join(filter(None, [message.get("content"), *written]))
