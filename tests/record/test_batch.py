"""Arrays for training hold every token of every segment in exactly one place, beside the reward that is its own."""

import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout_service.errors import ConfigError, RolloutError
from rollout_service.record.batch import PackedBatch, TrajectoryBatch
from rollout_service.record.trajectory import TokenSegment, Trajectory
from tests.support.trajectories import make_segment, make_trajectory, trajectories

many = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
batches = st.lists(trajectories(), max_size=5).map(TrajectoryBatch)
TOKEN_ARRAYS = ("token_ids", "loss_mask", "logprobs", "weight_versions")


def rows_of(batch: Sequence[Trajectory]) -> list[tuple[int, TokenSegment]]:
    return [(index, segment) for index, trajectory in enumerate(batch) for segment in trajectory.segments]


@given(batches)
@many
def test_padded_and_packed_rows_are_the_segments_and_know_their_trajectory_reward_and_group(
    batch: TrajectoryBatch,
) -> None:
    """All three are held against the same batches: to draw one takes far longer than to look at it."""
    _check_padded(batch)
    _check_packed(batch)
    _check_rows(batch)


def _check_padded(batch: TrajectoryBatch) -> None:
    """Each row is a segment, and padding carries nothing."""
    padded = batch.padded(pad_token_id=99)
    rows = rows_of(batch)
    longest = max((len(segment.token_ids) for _, segment in rows), default=0)
    assert padded.token_ids.shape == (len(rows), longest)
    for row, (_, segment) in enumerate(rows):
        length = len(segment.token_ids)
        assert padded.lengths[row] == length
        for name in TOKEN_ARRAYS:
            array = getattr(padded, name)[row]
            assert array.dtype == getattr(segment, name).dtype
            assert array[:length].tobytes() == getattr(segment, name).tobytes()
        assert set(padded.token_ids[row, length:]) <= {99}
        assert set(padded.weight_versions[row, length:]) <= {-1}
        assert not padded.loss_mask[row, length:].any()
        assert not padded.logprobs[row, length:].any()
        assert padded.attention_mask[row].tolist() == [1] * length + [0] * (longest - length)
        assert padded.position_ids[row].tolist() == [*range(length), *[0] * (longest - length)]
    assert padded.attention_mask.dtype == np.uint8
    assert padded.position_ids.dtype == np.int32


def _check_packed(batch: TrajectoryBatch) -> None:
    """The rows are the segments, end to end."""
    packed = batch.packed()
    rows = rows_of(batch)
    assert packed.cu_seqlens.dtype == packed.position_ids.dtype == np.int32
    assert len(packed.cu_seqlens) == len(rows) + 1
    assert packed.cu_seqlens[0] == 0
    assert packed.cu_seqlens[-1] == len(packed.token_ids) == len(packed.position_ids)
    assert np.diff(packed.cu_seqlens).tolist() == packed.lengths.tolist()
    for row, (_, segment) in enumerate(rows):
        span = slice(packed.cu_seqlens[row], packed.cu_seqlens[row + 1])
        for name in TOKEN_ARRAYS:
            assert getattr(packed, name)[span].tobytes() == getattr(segment, name).tobytes()
        assert packed.position_ids[span].tolist() == list(range(len(segment.token_ids)))


def _check_rows(batch: TrajectoryBatch) -> None:
    """Every row knows its trajectory, reward and group."""
    names = list(batch.groups())
    for arrays in (batch.padded(), batch.packed()):
        assert arrays.trajectory_index.tolist() == [index for index, _ in rows_of(batch)]
        assert [names[group] for group in arrays.group_index] == [batch[i].group_id for i in arrays.trajectory_index]
        np.testing.assert_array_equal(arrays.rewards, batch.rewards[arrays.trajectory_index])


def test_an_unscored_reward_is_nan_and_not_zero() -> None:
    rewards = TrajectoryBatch([make_trajectory(reward=None), make_trajectory(reward=0.0)]).rewards
    assert rewards.dtype == np.float32
    assert np.isnan(rewards[0])
    assert rewards[1] == 0.0


def test_a_segment_over_the_limit_is_refused_by_name_and_never_cut() -> None:
    short = make_trajectory(trajectory_id="short", segments=[make_segment(1, 7)])
    long = make_trajectory(trajectory_id="long", segments=[make_segment(1, 1), make_segment(1, 8)])
    batch = TrajectoryBatch([short, long])
    with pytest.raises(RolloutError, match=r"'long' has a segment of 11 tokens.*max_length=10.*filter"):
        batch.padded(max_length=10)
    assert batch.padded(max_length=11).token_ids.shape == (3, 11)
    assert batch.filter(lambda t: t is short).padded(max_length=50).token_ids.shape == (1, 10)


def test_groups_hold_their_members_by_sample_index() -> None:
    members = [
        make_trajectory(group_id=group, sample_index=sample)
        for group, sample in [("b", 1), ("a", 0), ("b", 0), ("a", 1)]
    ]
    groups = TrajectoryBatch(members).groups()
    assert {name: [t.sample_index for t in group] for name, group in groups.items()} == {"b": [0, 1], "a": [0, 1]}
    assert list(groups) == ["b", "a"]


def test_a_batch_behaves_as_a_sequence() -> None:
    members = [make_trajectory(trajectory_id=str(n)) for n in range(3)]
    batch = TrajectoryBatch(iter(members))
    assert (len(batch), list(batch), batch[-1]) == (3, members, members[2])
    assert isinstance(batch[1:], TrajectoryBatch)
    assert list(batch[1:]) == members[1:]
    assert repr(batch) == "TrajectoryBatch(3 trajectories, 1 groups)"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.floats(0, 1, width=32)), max_size=12))
@many
def test_group_statistics_are_those_of_the_scored_members(members: list[tuple[str, float | None]]) -> None:
    batch = TrajectoryBatch(make_trajectory(group_id=group, reward=reward) for group, reward in members)
    statistics = batch.group_statistics()
    assert len(statistics.mean) == len(statistics.std) == len(statistics.scored) == len(members)
    for row, (group, _) in enumerate(members):
        scored = [reward for name, reward in members if name == group and reward is not None]
        assert statistics.scored[row] == len(scored)
        if scored:
            assert statistics.mean[row] == pytest.approx(np.mean(scored), abs=1e-6)
            assert statistics.std[row] == pytest.approx(np.std(scored), abs=1e-6)
        else:
            assert np.isnan(statistics.mean[row])
            assert np.isnan(statistics.std[row])


def test_equal_rewards_deviate_by_exactly_nothing() -> None:
    batch = TrajectoryBatch(make_trajectory(reward=0.1) for _ in range(7))
    assert batch.group_statistics().std.tolist() == [0.0] * 7


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_saved_batch_loads(ending: str, tmp_path: Path) -> None:
    batch = TrajectoryBatch([make_trajectory(), make_trajectory(reward=None)])
    batch.save(tmp_path / f"x.{ending}")
    loaded = TrajectoryBatch.load(tmp_path / f"x.{ending}")
    np.testing.assert_array_equal(loaded.rewards, batch.rewards)
    assert loaded.packed().token_ids.tolist() == batch.packed().token_ids.tolist()


def test_tensors_have_the_names_types_and_values_of_the_arrays() -> None:
    torch = pytest.importorskip("torch")
    batch = TrajectoryBatch([make_trajectory(), make_trajectory(reward=None)])
    for arrays in (batch.padded(), batch.packed()):
        tensors = arrays.to_torch()
        assert tensors["token_ids"].dtype == torch.int32
        assert tensors["loss_mask"].dtype == torch.uint8
        assert tensors["logprobs"].dtype == torch.float32
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(tensor.numpy(), getattr(arrays, name))


def test_arrays_of_the_object_store_become_tensors_that_can_be_written() -> None:
    pytest.importorskip("torch")
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(TrajectoryBatch([make_trajectory()]).packed(), protocol=5, buffer_callback=buffers.append)
    received: PackedBatch = pickle.loads(sent, buffers=[bytes(buffer) for buffer in buffers])
    assert not received.token_ids.flags.writeable
    before = received.token_ids.tolist()
    received.to_torch()["token_ids"].zero_()
    assert received.token_ids.tolist() == before


def test_without_torch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r'pip install "tau2-rollout-service\[torch\]"'):
        TrajectoryBatch([make_trajectory()]).packed().to_torch()
