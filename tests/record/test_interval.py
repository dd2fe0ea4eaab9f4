"""Intervals over tasks hold the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rollout_service.record.interval import interval_over_tasks, wilson_interval

RUNS, TASKS, TRIALS = 1000, 20, 4


def covered(solves: float, fails: float, k: int) -> float:
    """The share of simulated runs whose interval holds the true pass^k. Each task's chance is drawn from a beta
    distribution, of which all moments, so the true pass^k, are known."""
    random = np.random.default_rng(5)
    successes = random.binomial(TRIALS, random.beta(solves, fails, (RUNS, TASKS)))
    truth = math.prod((solves + i) / (solves + fails + i) for i in range(k))
    rates = np.array([math.comb(s, k) / math.comb(TRIALS, k) for s in range(TRIALS + 1)])
    found = np.array([interval_over_tasks(run, ["airline"] * TASKS) for run in rates[successes]])
    return float(np.mean((found[:, 0] <= truth) & (truth <= found[:, 1])))


@pytest.mark.parametrize("solves", [1.0, 1.5])
def test_they_hold_the_truth_in_93_to_97_percent_of_simulated_runs_of_20_tasks(solves):
    assert [k for k in range(1, TRIALS + 1) if not 0.93 <= covered(solves, 1.0, k) <= 0.97] == []


def test_few_tasks_that_succeed_are_not_taken_for_alike():
    assert covered(1.0, 2.0, 3) > 0.91


def test_the_variance_is_that_within_domains():
    values, domains = [1.0, 0.9] * 10 + [0.0, 0.1] * 10, ["airline"] * 20 + ["retail"] * 20
    low, high = interval_over_tasks(values, domains)
    one_low, one_high = interval_over_tasks(values, ["all"] * 40)
    assert one_low < low < 0.5 < high < one_high
    assert interval_over_tasks(values[::-1], domains[::-1]) == pytest.approx((low, high))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_tasks_fail_or_all_succeed_it_is_wilson_s(value):
    assert interval_over_tasks([value] * 7, ["a"] * 3 + ["b"] * 4) == wilson_interval(value, 7)


def test_one_task_or_one_of_a_domain_of_its_own_is_enough():
    assert interval_over_tasks([0.5], ["a"]) == wilson_interval(0.5, 1)
    low, high = interval_over_tasks([1.0, 0.0, 0.0], ["a", "b", "b"])
    assert 0 < low < 1 / 3 < high < 1


def test_over_no_task_there_is_none():
    with pytest.raises(ValueError, match="over no task"):
        interval_over_tasks([], [])
