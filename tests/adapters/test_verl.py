"""The converter to verl, and what verl's own code makes of the same trajectories."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout_service.adapters.checks import TrainingDataError
from rollout_service.adapters.verl import agent_loop_output, data_proto
from rollout_service.errors import ConfigError
from rollout_service.record.trajectory import Provenance, Timing, Trajectory
from rollout_service.record.turn_facts import TurnFacts
from tests.support import verl
from tests.support.trajectories import make_member, make_segment, make_trajectory

many = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PAD, PROMPT, RESPONSE = 7, 5, 32
PLACES = {"pad_token_id": PAD, "prompt_length": PROMPT, "response_length": RESPONSE}

FIELDS = {
    "prompt_ids",
    "response_ids",
    "response_mask",
    "response_logprobs",
    "reward_score",
    "num_turns",
    "metrics",
    "extra_fields",
}
"""Of verl 0.9.1's AgentLoopOutput, those that a text agent fills."""

BATCH = {
    "prompts",
    "responses",
    "response_mask",
    "input_ids",
    "attention_mask",
    "position_ids",
    "rollout_log_probs",
    "rm_scores",
}
"""Of its DataProto's tensors, after an agent loop."""


@st.composite
def batches(draw: st.DrawFn) -> list[Trajectory]:
    """Whole groups of one-segment trajectories."""
    segments = st.builds(make_segment, st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
    return [
        make_member(
            group,
            sample,
            reward=draw(st.floats(0, 1, width=32)),
            segments=[draw(segments)],
            messages=[{"role": "user"}] * draw(st.integers(1, 5)),
        )
        for group in range(draw(st.integers(1, 2)))
        for sample in range(draw(st.integers(1, 3)))
    ]


@given(rewards=st.lists(st.none() | st.floats(0, 1, width=32), min_size=1, max_size=5).filter(any))
@many
def test_of_a_partial_group_verl_gets_the_members_that_are_there_and_compares_only_those(rewards) -> None:
    group = [make_member(0, sample, reward=reward) for sample, reward in enumerate(rewards)]
    tensors, others = data_proto(group, **PLACES, unscored="mask")
    there = [reward for reward in rewards if reward is not None]
    assert tensors["rm_scores"].sum(-1).tolist() == there
    assert list(others["uid"]) == [group[0].group_id] * len(there)


@given(batches())
@many
def test_prompt_and_response_put_together_are_the_segment(batch: list[Trajectory]) -> None:
    for trajectory in batch:
        segment, output = trajectory.segments[0], agent_loop_output(trajectory)
        assert set(output) == FIELDS
        assert output["prompt_ids"] + output["response_ids"] == segment.token_ids.tolist()
        assert len({len(output[f"response_{name}"]) for name in ("ids", "mask", "logprobs")}) == 1
        assert sum(output["response_mask"]) == segment.policy_token_count
        assert output["response_logprobs"] == segment.logprobs[segment.prompt_length :].tolist()
        assert output["reward_score"] == trajectory.reward
        assert output["num_turns"] == len(trajectory.messages)


@given(batches())
@many
def test_every_row_of_the_tensors_gives_its_trajectory_back(batch: list[Trajectory]) -> None:
    tensors, others = data_proto(batch, **PLACES)
    assert set(tensors) == BATCH
    for row, trajectory in enumerate(batch):
        segment = trajectory.segments[0]
        seen = tensors["attention_mask"][row].bool()
        assert tensors["input_ids"][row][seen].tolist() == segment.token_ids.tolist()
        assert set(tensors["input_ids"][row][~seen].tolist()) <= {PAD}
        assert tensors["position_ids"][row][seen].tolist() == list(range(len(segment.token_ids)))
        assert set(tensors["position_ids"][row][:PROMPT][~seen[:PROMPT]].tolist()) <= {0}
        assert int(seen[:PROMPT].sum()) == segment.prompt_length
        assert seen[PROMPT - 1]  # the prompt touches the response
        assert seen[PROMPT]
        sampled = tensors["response_mask"][row].bool()
        assert tensors["responses"][row][sampled].tolist() == segment.token_ids[segment.loss_mask == 1].tolist()
        assert tensors["rollout_log_probs"][row][sampled].tolist() == segment.logprobs[segment.loss_mask == 1].tolist()
        assert not tensors["rollout_log_probs"][row][~sampled].any()
        assert float(tensors["rm_scores"][row].sum()) == trajectory.reward
    assert others["uid"].tolist() == [trajectory.group_id for trajectory in batch]
    assert {name: array.dtype for name, array in others.items() if name != "__num_turns__"} == {
        name: np.dtype(object) for name in others if name != "__num_turns__"
    }


def test_shapes_and_types_are_those_of_verl() -> None:
    tensors, others = data_proto([make_trajectory(), make_trajectory(sample_index=1)], **PLACES)
    whole, response = (2, PROMPT + RESPONSE), (2, RESPONSE)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        "prompts": ((2, PROMPT), torch.int64),
        "responses": (response, torch.int64),
        "response_mask": (response, torch.int64),
        "input_ids": (whole, torch.int64),
        "attention_mask": (whole, torch.int64),
        "position_ids": (whole, torch.int64),
        "rollout_log_probs": (response, torch.float32),
        "rm_scores": (response, torch.float32),
    }
    assert others["__num_turns__"].dtype == np.int32


def test_the_reward_is_on_the_last_token_that_was_sampled() -> None:
    tensors, _ = data_proto([make_trajectory(reward=0.5)], **PLACES)
    place = int(tensors["rm_scores"][0].nonzero())
    assert tensors["response_mask"][0, place] == 1
    assert not tensors["response_mask"][0, place + 1 :].any()


def test_time_and_weight_versions_go_where_verl_looks_for_them() -> None:
    timing = Timing(policy_seconds=1.0, user_seconds=2.0, environment_seconds=0.5, evaluation_seconds=0.25)
    output = agent_loop_output(make_trajectory(timing=timing))
    assert output["metrics"] == {"generate_sequences": 1.0, "tool_calls": 2.5, "compute_score": 0.25}
    assert (output["extra_fields"]["min_global_steps"], output["extra_fields"]["max_global_steps"]) == (0, 1)


def test_facts_of_turns_stand_beside_the_reward_at_the_tokens_of_the_response() -> None:
    trajectory = make_trajectory()
    trajectory.turns[1].facts = TurnFacts(1, 0, False, [2], [])
    output, (_, others) = agent_loop_output(trajectory), data_proto([trajectory], **PLACES)
    assert output["extra_fields"]["turn_facts"] == others["turn_facts"][0]
    assert output["reward_score"] == trajectory.reward
    first, second = others["turn_facts"][0]
    assert set(output["response_mask"][second["start"] : second["end"]]) == {1}
    assert (first["gold_actions"], second["gold_actions"], second["wrote"]) == (None, 1, 0)


# Refusals ------------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_and_never_cut() -> None:
    trajectory = make_trajectory(segments=[make_segment(1, 8)])
    with pytest.raises(ConfigError, match=r"response_length of 8, more than response_length=7.*Raise rollout"):
        data_proto([trajectory], **PLACES | {"response_length": 7})
    with pytest.raises(ConfigError, match="prompt_length of 3, more than prompt_length=2"):
        data_proto([trajectory], **PLACES | {"prompt_length": 2})
    tensors, _ = data_proto([trajectory], PAD, prompt_length=3, response_length=8)
    assert tensors["attention_mask"].tolist() == [[1] * 11]


def test_more_than_one_segment_is_refused() -> None:
    trajectory = make_trajectory(segments=[make_segment()] * 2)
    for convert in (agent_loop_output, lambda t: data_proto([t], **PLACES)):
        with pytest.raises(TrainingDataError, match=r"it has 2 segments.*policy.history: append"):
            convert(trajectory)


def test_a_missing_reward_is_refused_or_left_out_of_its_group() -> None:
    batch = [make_trajectory(reward=reward, sample_index=i) for i, reward in enumerate([1.0, None, 0.0])]
    with pytest.raises(TrainingDataError, match="reward is None"):
        agent_loop_output(batch[1])
    with pytest.raises(TrainingDataError, match="reward is None"):
        data_proto(batch, **PLACES)
    tensors, others = data_proto(batch, **PLACES, unscored="mask")
    assert tensors["rm_scores"].sum(-1).tolist() == [1.0, 0.0]
    assert len(others["uid"]) == 2


def test_a_batch_that_was_sampled_from_a_part_of_the_distribution_is_refused_and_one_to_validate_with_is_not() -> None:
    narrow = make_trajectory(provenance=Provenance(sampling={"temperature": 1.0, "top_p": 0.9}))
    with pytest.raises(TrainingDataError, match=r"top_p is 0\.9"):
        data_proto([narrow], **PLACES)
    assert set(agent_loop_output(narrow)) == FIELDS


def test_groups_that_are_not_whole_and_mixed_tokenizers_are_refused() -> None:
    with pytest.raises(TrainingDataError, match="is not whole"):
        data_proto([make_trajectory()], **PLACES, group_size=2)
    mixed = [make_trajectory(sample_index=i, provenance=Provenance(tokenizer_fingerprint=str(i))) for i in range(2)]
    with pytest.raises(TrainingDataError, match="tokenizer_fingerprint is '1'"):
        data_proto(mixed, **PLACES)
    with pytest.raises(TrainingDataError, match=r"tokenizer_fingerprint is '1'.*not 'own'"):
        agent_loop_output(mixed[1], tokenizer_fingerprint="own")


# verl itself ---------------------------------------------------------------------------------------------------------


def verls_own(batch: list[Trajectory]) -> Any:
    """The DataProto that verl's worker makes of the same trajectories, from their AgentLoopOutputs."""
    agent_loop = verl.needed("verl.experimental.agent_loop.agent_loop")

    class Tokenizer:
        """Pads, which is all that the worker asks of it."""

        pad_token_id = PAD
        padding_side = "right"

        def pad(self, encoded: dict[str, list[int]], *, max_length: int, **_: Any) -> dict[str, torch.Tensor]:
            ids = encoded["input_ids"]
            fill = [0] * (max_length - len(ids))
            left = self.padding_side == "left"
            rows = {"input_ids": (ids, [PAD] * len(fill)), "attention_mask": ([1] * len(ids), fill)}
            return {name: torch.tensor([pad + own if left else own + pad]) for name, (own, pad) in rows.items()}

    worker_class = agent_loop.AgentLoopWorker
    worker = worker_class.__new__(worker_class)
    worker.tokenizer, worker.processor = Tokenizer(), None
    worker.rollout_config = SimpleNamespace(prompt_length=PROMPT, response_length=RESPONSE)
    worker.reward_loop_worker_handles, worker.distillation_enabled = None, False
    worker.config = SimpleNamespace(data=SimpleNamespace(get=lambda *_: None))
    worker._get_mm_processor_kwargs = lambda *_: {}

    async def padded(trajectory: Trajectory) -> Any:
        output = agent_loop.AgentLoopOutput(**agent_loop_output(trajectory))
        return await worker._agent_loop_postprocess(output, False, raw_prompt=None)

    return worker._postprocess([asyncio.run(padded(trajectory)) for trajectory in batch])


@given(batches())
@settings(max_examples=10, deadline=None)
@pytest.mark.verl
def test_verls_own_worker_makes_the_same_tensors_of_the_same_trajectories(batch: list[Trajectory]) -> None:
    theirs = verls_own(batch)
    tensors, others = data_proto(batch, **PLACES)
    assert set(theirs.batch.keys()) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(theirs.batch[name], tensor), name
        assert theirs.batch[name].dtype == tensor.dtype, name
    for name in (*agent_loop_output(batch[0])["extra_fields"], "__num_turns__"):
        assert theirs.non_tensor_batch[name].tolist() == others[name].tolist()


@pytest.mark.verl
def test_verl_takes_the_tensors_and_gives_the_advantages_of_grpo() -> None:
    protocol = verl.needed("verl.protocol")
    algorithms = verl.needed("verl.trainer.ppo.core_algos")
    batch = [make_trajectory(reward=r, sample_index=i) for i, r in enumerate([1.0, 0.0, 0.0, 1.0])]
    tensors, others = data_proto(batch, **PLACES)
    data = protocol.DataProto.from_dict(tensors=tensors, non_tensors=others)
    advantages, _ = algorithms.compute_grpo_outcome_advantage(
        data.batch["rm_scores"],
        data.batch["response_mask"],
        data.non_tensor_batch["uid"],
        norm_adv_by_std_in_grpo=False,
    )
    sampled = data.batch["response_mask"].bool()
    assert [set(row[mask].tolist()) for row, mask in zip(advantages, sampled, strict=True)] == [
        {0.5},
        {-0.5},
        {-0.5},
        {0.5},
    ]
