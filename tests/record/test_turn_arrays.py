"""Arrays of turns describe each turn of a batch once, and bring its values to the tokens that it sampled."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout_service.errors import ConfigError
from rollout_service.record.batch import TrajectoryBatch
from rollout_service.record.turn_arrays import FACTS, UNKNOWN
from rollout_service.record.turn_facts import TurnFacts, answered, problems
from tests.support.trajectories import make_segment, make_trajectory, trajectories

many = settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(st.lists(trajectories(), max_size=4).map(TrajectoryBatch))
@many
def test_every_array_has_an_entry_for_each_turn_in_the_order_of_the_rows(batch: TrajectoryBatch) -> None:
    arrays = batch.turn_arrays()
    turns = [turn for trajectory in batch for turn in trajectory.turns]
    for name in ("row", "number", "trajectory_index", "start", "end", *FACTS):
        array = getattr(arrays, name)
        assert (array.dtype, array.shape) == (np.int32, (len(turns),)), name
    segments = [segment for trajectory in batch for segment in trajectory.segments]
    for place, turn in enumerate(turns):
        assert segments[arrays.row[place]].turns[arrays.number[place]] is turn
        assert batch[int(arrays.trajectory_index[place])].segments.count(segments[arrays.row[place]]) == 1
        assert (arrays.start[place], arrays.end[place]) == (turn.start, turn.end)
        assert arrays.calls[place] == len(turn.tool_calls)
        known = turn.facts.valid_calls
        assert arrays.valid_calls[place] == (UNKNOWN if known is None else known)
        assert arrays.wrote[place] == {None: UNKNOWN, True: 1, False: 0}[turn.facts.wrote]
        wanted = turn.facts.gold_actions
        assert arrays.gold_actions[place] == (UNKNOWN if wanted is None else len(wanted))


@given(st.lists(trajectories(), max_size=4).map(TrajectoryBatch))
@many
def test_a_value_per_turn_stands_on_the_tokens_that_the_turn_sampled_and_nowhere_else(batch: TrajectoryBatch) -> None:
    arrays, padded, packed = batch.turn_arrays(), batch.padded(), batch.packed()
    numbers = np.arange(len(arrays.row), dtype=np.int64)
    rows, flat = arrays.padded(numbers, -1), arrays.packed(numbers, -1)
    assert rows.shape == padded.loss_mask.shape
    assert flat.shape == packed.loss_mask.shape
    assert ((rows >= 0) == (padded.loss_mask == 1)).all()
    assert ((flat >= 0) == (packed.loss_mask == 1)).all()
    for turn, (row, start, end) in enumerate(zip(arrays.row, arrays.start, arrays.end, strict=True)):
        assert set(rows[row, start:end]) == {turn}
        assert set(flat[packed.cu_seqlens[row] + start : packed.cu_seqlens[row] + end]) == {turn}
    by_row = arrays.by_row(numbers, -1)
    assert by_row[by_row >= 0].tolist() == numbers.tolist()
    assert (by_row[arrays.row, arrays.number] == numbers).all()


def test_credit_per_turn_adds_up_by_hand_and_is_no_part_of_the_advantages() -> None:
    segment = make_segment(turns=2, turn_length=2)
    segment.turns[0].facts = TurnFacts(1, 0, True, [0, 2], [])
    segment.turns[1].facts = TurnFacts(0, 1, False, [], [0])
    plain = TrajectoryBatch([make_trajectory(), make_trajectory(sample_index=1, reward=0.0)])
    batch = TrajectoryBatch([make_trajectory(segments=[segment]), make_trajectory(sample_index=1, reward=0.0)])
    arrays = batch.turn_arrays()
    credit = 0.5 * np.maximum(arrays.gold_actions, 0) - 0.25 * np.maximum(arrays.refused_calls, 0)
    assert credit.tolist() == [1.0, -0.25, 0.0, 0.0]  # nothing is known of the second trajectory's turns
    assert arrays.padded(credit)[0].tolist()[:9] == [0, 0, 0, 1.0, 1.0, 0, 0, -0.25, -0.25]
    assert batch.advantages().tolist() == plain.advantages().tolist()
    assert batch.rewards.tolist() == plain.rewards.tolist()


def test_a_list_that_is_not_one_value_per_turn_is_refused() -> None:
    arrays = TrajectoryBatch([make_trajectory()]).turn_arrays()
    for spread in (arrays.padded, arrays.packed, arrays.by_row):
        with pytest.raises(ConfigError, match=r"values has the shape \(3,\), and the batch has 2 turns"):
            spread([1, 2, 3])


def test_the_arrays_can_be_sent_to_another_process() -> None:
    arrays = TrajectoryBatch([make_trajectory()]).turn_arrays()
    assert pickle.loads(pickle.dumps(arrays)).start.tolist() == arrays.start.tolist()


def test_answers_are_counted_by_the_message_s_own_calls() -> None:
    calls = [{"id": "a", "name": "x", "arguments": {}}, {"id": "b", "name": "y", "arguments": {}}]
    messages = [
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "id": "a", "content": "1"},
        {"role": "tool", "id": "b", "content": "Error: no", "error": True},
        {"role": "assistant", "content": "Done."},
    ]
    assert answered(["ok", "ok"], 0, messages) == (1, 1)
    assert answered(["ok", "unclosed_block"], 0, messages) == (1, 0)
    assert answered(["ok", "ok"], 0, messages[:2]) == (1, 0)  # the episode ended before the second answer
    assert answered(["ok"], None, messages) == answered([], 3, messages) == (0, 0)


@pytest.mark.parametrize(
    ("facts", "problem"),
    [
        (TurnFacts(valid_calls=1), "valid_calls is 1, and its messages show 0"),
        (TurnFacts(refused_calls=2), "refused_calls is 2, and its messages show 0"),
        (TurnFacts(wrote=True), "wrote is true, and no call is well formed"),
        (TurnFacts(gold_actions=[1, 0]), r"gold_actions is [1, 0], no ascending positions"),
        (TurnFacts(communicated=[-1]), r"communicated is [-1], no ascending positions"),
    ],
    ids=["valid", "refused", "wrote", "gold", "communicated"],
)
def test_facts_that_the_record_contradicts_are_named(facts: TurnFacts, problem: str) -> None:
    assert problems(facts, [], 0, [{"role": "assistant", "content": "Hello."}]) == [problem]
    assert problems(TurnFacts(), [], 0, [{"role": "assistant", "content": "Hello."}]) == []
