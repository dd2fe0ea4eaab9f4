"""Rewards of a slime batch: an episode counts once, a fault not at all."""

from __future__ import annotations

import copy
import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rollout_service.adapters.checks import TrainingDataError
from rollout_service.adapters.slime import keep_informative, report, reward_post_process
from rollout_service.adapters.slime.samples import filled
from tests.support import slime

ARGS = slime.make_args(n_samples_per_prompt=4)


def batch(rewards: list[list[float | None]], siblings: list[list[int]] | None = None) -> list:
    """A flat batch: a list of rewards per group; None is an infrastructure fault."""
    samples, index = [], 0
    for group_index, group in enumerate(rewards):
        for place, reward in enumerate(group):
            count = siblings[group_index][place] if siblings else 1
            trajectory = (
                slime.EPISODES["fault"]
                if reward is None
                else slime.episode(reward=reward, segments=[slime.segment() for _ in range(count)])
            )
            samples += filled(slime.make_sample(index, group_index), trajectory)
            index += 1
    return samples


def test_a_group_is_normalised_by_its_own_mean_and_deviation():
    raw, rewards = reward_post_process(ARGS, batch([[1, 0, 0, 1], [1, 1, 1, 1]]))
    assert raw == [1, 0, 0, 1, 1, 1, 1, 1]
    deviation = np.std([1, 0, 0, 1], ddof=1) + 1e-6
    assert rewards == pytest.approx([0.5 / deviation, -0.5 / deviation, -0.5 / deviation, 0.5 / deviation, 0, 0, 0, 0])


def test_a_fault_is_left_out_of_its_group_and_of_the_logged_mean():
    raw, rewards = reward_post_process(ARGS, batch([[1, 0, None, 1], [None] * 4]))
    deviation = np.std([1, 0, 1], ddof=1) + 1e-6
    assert rewards == pytest.approx([1 / 3 / deviation, -2 / 3 / deviation, 0, 1 / 3 / deviation, 0, 0, 0, 0])
    assert np.mean(raw) == pytest.approx(2 / 3)


def test_siblings_count_once_and_get_the_same():
    once = reward_post_process(ARGS, batch([[1, 0, 0, 0]]))[1]
    split = reward_post_process(ARGS, batch([[1, 0, 0, 0]], [[3, 1, 2, 1]]))[1]
    assert split == pytest.approx([once[0]] * 3 + [once[1]] + [once[2]] * 2 + [once[3]])


def test_an_estimator_without_groups_gets_the_rewards_as_they_are():
    args = slime.make_args(n_samples_per_prompt=4, advantage_estimator="ppo")
    assert reward_post_process(args, batch([[1, 0, None, 1]]))[1] == [1, 0, 0, 1]
    off = slime.make_args(n_samples_per_prompt=4, rewards_normalization=False)
    assert reward_post_process(off, batch([[1, 0, None, 1]]))[1] == [1, 0, 0, 1]


@pytest.mark.parametrize(
    "fields", [{"advantage_estimator": "reinforce_plus_plus_baseline"}, {"grpo_std_normalization": False}]
)
def test_the_deviation_is_left_out_where_slime_leaves_it_out(fields):
    rewards = reward_post_process(slime.make_args(n_samples_per_prompt=4, **fields), batch([[1, 0, 0, 1]]))[1]
    assert rewards == [0.5, -0.5, -0.5, 0.5]


def test_a_group_that_is_not_whole_is_refused():
    with pytest.raises(TrainingDataError, match="Group 0 has 3 episodes"):
        reward_post_process(ARGS, batch([[1, 0, 1, 1]])[:3])


def test_a_batch_in_which_some_have_no_log_probs_is_refused():
    samples = batch([[1, 0, 1, 1]])
    samples[2].rollout_log_probs = None
    with pytest.raises(TrainingDataError, match="1 of 4 samples have no log-probs"):
        reward_post_process(ARGS, samples)


def test_a_response_that_was_changed_afterwards_is_refused():
    samples = batch([[1, 0, 1, 1]])
    samples[1].loss_mask = samples[1].loss_mask[1:]
    with pytest.raises(TrainingDataError, match="another length"):
        reward_post_process(ARGS, samples)


def test_a_batch_without_any_reward_is_refused_with_its_faults():
    with pytest.raises(TrainingDataError, match="4 × user_simulator: the user simulator's endpoint answered 500"):
        reward_post_process(ARGS, batch([[None] * 4]))


@given(rewards=st.lists(st.none() | st.floats(0, 1, width=32), min_size=1, max_size=6).filter(any))
@hypothesis_settings(deadline=None, max_examples=40)
def test_a_partial_group_is_normalised_as_the_group_of_the_members_that_are_there(rewards):
    there = [reward for reward in rewards if reward is not None]
    partial, alone = (
        reward_post_process(slime.make_args(n_samples_per_prompt=len(group)), batch([group]))
        for group in (rewards, there)
    )
    for found, expected in zip(partial, alone, strict=True):  # raw rewards, then the normalised ones
        assert [value for value, reward in zip(found, rewards, strict=True) if reward is not None] == expected
    lost = [value for value, reward in zip(partial[1], rewards, strict=True) if reward is None]
    assert lost == [0.0] * len(lost)


REWARD = st.none() | st.sampled_from([0.0, 1.0]) | st.floats(0, 1, width=32)
GROUPS = st.lists(st.lists(st.tuples(REWARD, st.integers(1, 3)), min_size=4, max_size=4), min_size=1, max_size=4)


@given(groups=GROUPS, order=st.randoms(use_true_random=False))
@hypothesis_settings(deadline=None, max_examples=60)
def test_whatever_the_order_scored_episodes_of_a_group_have_mean_zero(groups, order):
    if all(reward is None for group in groups for reward, _ in group):
        groups[0][0] = (1.0, 1)
    rewards = [[reward for reward, _ in group] for group in groups]
    samples = batch(rewards, [[count for _, count in group] for group in groups])
    raw, normalised = reward_post_process(ARGS, samples)
    assert len(raw) == len(normalised) == len(samples)
    assert all(map(math.isfinite, raw + normalised))
    by_episode = {s.rollout_id: value for s, value in zip(samples, normalised, strict=True)}
    for index, group in enumerate(rewards):
        mine = [by_episode[index * 4 + place] for place in range(4)]
        assert all(value == 0 for value, reward in zip(mine, group, strict=True) if reward is None)
        assert sum(mine) == pytest.approx(0, abs=1e-3)
    shuffled = list(enumerate(samples))
    order.shuffle(shuffled)
    again = reward_post_process(ARGS, [sample for _, sample in shuffled])[1]
    assert again == pytest.approx([normalised[place] for place, _ in shuffled], abs=1e-6)


def test_the_filter_keeps_groups_whose_rewards_differ_siblings_or_not():
    def verdict(rewards, siblings=None):
        output = keep_informative(ARGS, batch([rewards], siblings))
        return output.keep, output.reason

    assert verdict([1, 0, None, None]) == (True, None)
    assert verdict([1, 1, 1, None]) == (False, "all_1")
    assert verdict([1, None, None, None], [[3, 1, 1, 1]]) == (False, "unscored")
    nested = [[sample] for sample in batch([[1, 0, 0, 0]])]
    assert keep_informative(ARGS, nested).keep


def test_the_report_names_outcomes_rewards_and_faults(caplog):
    groups = [batch([[1, 0, None, None]]), [slime.make_sample(index=99)]]
    with caplog.at_level(logging.INFO):
        report(ARGS, copy.deepcopy(groups), None)
    assert "5 episodes (aborted 2, completed 2, not started 1); mean reward retail 0.500 of 2" in caplog.text
    assert "2 × user_simulator" in caplog.text
