"""What the sampler saves a trainer that keeps only groups whose rewards differ, with a simulated policy."""

from __future__ import annotations

import pytest

from rollout_service.task_sampling.pass_rate import PassRateSampler
from rollout_service.task_sampling.uniform import UniformSampler
from tests.support.simulated_training import pool, train


@pytest.mark.parametrize("seed", range(6))
def test_informative_groups_need_at_most_seven_tenths_of_the_episodes_with_pass_rate(seed):
    uniform = train(UniformSampler(pool(), seed=seed), seed, informative=200)
    learned = train(PassRateSampler(pool(), seed=seed), seed, informative=200)
    assert uniform.informative == learned.informative == 200
    assert learned.episodes <= 0.7 * uniform.episodes


@pytest.mark.parametrize("seed", range(3))
def test_the_policy_is_as_good_after_as_many_informative_groups(seed):
    """What is drawn rarely is not forgotten: the tasks that the policy could not pass at first are learned as well."""
    uniform = train(UniformSampler(pool(), seed=seed), seed, informative=400)
    learned = train(PassRateSampler(pool(), seed=seed), seed, informative=400)
    assert learned.pass_rate >= uniform.pass_rate - 0.02


def test_a_run_is_the_same_when_it_is_repeated():
    first, second = (train(PassRateSampler(pool(), seed=3), 3, informative=50) for _ in range(2))
    assert first == second
