"""What slime would hand to our hooks: samples, arguments, a data source. slime's own classes where it is installed."""

from __future__ import annotations

import copy
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rollout_service.adapters.prompts import prepare_data
from rollout_service.adapters.slime.types import types
from rollout_service.errors import Fault, FaultKind
from rollout_service.policy.base import Generation
from rollout_service.record.ledger import TokenLedger
from rollout_service.record.trajectory import Outcome, TaskRef, Timing, TokenSegment, Trajectory

SAMPLING = {
    "temperature": 0.7,
    "top_p": 1.0,
    "top_k": -1,
    "max_new_tokens": 512,
    "stop": None,
    "stop_token_ids": None,
    "skip_special_tokens": False,
    "no_stop_trim": True,
    "spaces_between_special_tokens": False,
}
"""As slime's `GenerateState` makes them."""


def make_sample(index: int = 0, group_index: int = 0, task: TaskRef | None = None, **fields: Any) -> Any:
    """A prompt's sample as slime's data source gives it."""
    task = task or TaskRef("retail", "train", "17", 3)
    metadata = {"domain": task.domain, "split": task.split, "task_id": task.task_id, "index": task.index}
    sample = types().sample(index=index, group_index=group_index, prompt=str(task.index), metadata=metadata)
    for name, value in fields.items():
        setattr(sample, name, value)
    return sample


def status(value: str) -> Any:
    """slime's status of that value."""
    return type(types().sample().status)(value)


def make_args(url: str = "http://127.0.0.1:30000", **fields: Any) -> Namespace:
    """The arguments of slime that we read, as a run script sets them."""
    host, _, port = url.removeprefix("http://").partition(":")
    defaults: dict[str, Any] = {
        "sglang_router_ip": host,
        "sglang_router_port": int(port),
        "hf_checkpoint": str(Path(__file__).parents[2] / "rollout_service/assets/tokenizer"),
        "rollout_seed": 42,
        "rollout_batch_size": 2,
        "n_samples_per_prompt": 2,
        "over_sampling_batch_size": 2,
        "rollout_temperature": 0.7,
        "rollout_top_p": 1.0,
        "rollout_top_k": -1,
        "rollout_max_response_len": 512,
        "rollout_max_context_len": 65536,
        "rollout_stop": None,
        "rollout_stop_token_ids": None,
        "advantage_estimator": "grpo",
        "rewards_normalization": True,
        "grpo_std_normalization": True,
        "custom_reward_post_process_path": "rollout_service.adapters.slime.reward_post_process",
        "reward_key": None,
        "group_rm": False,
        "partial_rollout": False,
    }
    return Namespace(**defaults | fields)


def write_prompts(path: Path, tasks: Sequence[TaskRef]) -> Path:
    """What `prepare_data` writes of these tasks of the mock domain; gives the path."""
    prepare_data(path, ["mock"], ["base"])
    chosen = {task.task_id for task in tasks}
    lines = [line for line in path.read_text().splitlines() if json.loads(line)["metadata"]["task_id"] in chosen]
    path.write_text("\n".join(lines))
    return path


def dataset(name: str, path: Path, **fields: Any) -> Namespace:
    """slime's `EvalDatasetConfig`."""
    sampling = {"temperature": 0.0, "max_response_len": 512}
    unset = ("top_p", "top_k", "min_new_tokens", "repetition_penalty", "stop", "stop_token_ids")
    keys = {"input_key": "prompt", "metadata_key": "metadata", "n_samples_per_eval_prompt": 2}
    return Namespace(**{"name": name, "path": str(path), **sampling, **dict.fromkeys(unset), **keys} | fields)


class Prompts:
    """slime's data source: numbers samples and groups through."""

    def __init__(self, tasks: list[TaskRef], group_size: int) -> None:
        self._tasks = tasks
        self._group_size = group_size
        self.groups = 0

    def get_samples(self, n: int) -> list[list[Any]]:
        groups = []
        for _ in range(n):
            first, task = self.groups * self._group_size, self._tasks[self.groups % len(self._tasks)]
            samples = [make_sample(first + i, self.groups, task) for i in range(self._group_size)]
            groups.append(copy.deepcopy(samples))
            self.groups += 1
        return groups


# Trajectories with numbers that a reader can follow ------------------------------------------------------------------


def segment(prompt: tuple[int, ...] = (1, 2, 3), first: int = 10) -> TokenSegment:
    """A prompt, two sampled tokens by weights 7, two of context, one sampled token by weights 8."""
    ledger = TokenLedger(prompt)
    ledger.append_policy(_sampled([first, first + 1], [-0.5, -0.25], 7, cached=0))
    ledger.append_context([4, 5])
    ledger.append_policy(_sampled([first + 2], [-1.0], 8, cached=4))
    made = ledger.to_segment()
    made.turns[0].message_index, made.turns[1].message_index = 1, 3
    return made


def _sampled(tokens: list[int], logprobs: list[float], version: int, cached: int) -> Generation:
    n = len(tokens)
    arrays = np.array(tokens, np.int32), np.array(logprobs, np.float32), np.full(n, version, np.int32)
    return Generation(*arrays, finish_reason="stop", cached_tokens=cached)


def episode(**fields: Any) -> Trajectory:
    """A completed episode of one segment with reward 1; any field can be given."""
    call = {"id": "c", "name": "get_order", "arguments": {"order_id": "#1"}}
    defaults: dict[str, Any] = {
        "trajectory_id": "c0-00000-000",
        "collection_id": "c0",
        "group_id": "c0-00000",
        "sample_index": 0,
        "task": TaskRef("retail", "train", "17", 3),
        "seed": 5,
        "attempt": 1,
        "outcome": Outcome.COMPLETED,
        "termination_reason": "user_stop",
        "reward": 1.0,
        "segments": [segment()],
        "messages": [
            {"role": "user", "content": "Where is my order?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "shipped"},
            {"role": "assistant", "content": "It is on its way."},
        ],
        "timing": Timing(policy_seconds=8.0, user_seconds=4.0, environment_seconds=2.0, evaluation_seconds=1.0),
    }
    return Trajectory(**defaults | fields)


FAULT = Fault(FaultKind.USER_SIMULATOR, "APIError", "the user simulator's endpoint answered 500", retryable=True)

EPISODES: dict[str, Trajectory] = {
    "completed": episode(),
    "truncated": episode(outcome=Outcome.TRUNCATED, termination_reason="max_turns", reward=0.0),
    "agent_error": episode(outcome=Outcome.AGENT_ERROR, termination_reason="agent_error", reward=0.0),
    "fault": episode(outcome=Outcome.ABORTED, termination_reason="fault", reward=None, fault=FAULT, attempt=3),
    "cancelled": episode(outcome=Outcome.ABORTED, termination_reason="cancelled", reward=None),
    "wall_time": episode(outcome=Outcome.TRUNCATED, termination_reason="wall_time", reward=None),
    "prompt_too_long": episode(
        outcome=Outcome.TRUNCATED, termination_reason="context_length", reward=None, segments=[], messages=[]
    ),
    "two_segments": episode(segments=[segment(), segment(prompt=(1, 2, 3, 10), first=20)]),
}
"""One of each way in which an episode can end."""
