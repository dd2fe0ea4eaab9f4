"""Bootstrap intervals hold the truth as often as they say."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rollout_service.record.bootstrap import intervals

RUNS, TASKS, TRIALS = 1000, 40, 4


def test_they_hold_the_truth_in_93_to_97_percent_of_simulated_runs():
    """Each task's chance is drawn from a beta distribution, of which all moments, so the true pass^k, are known."""
    random, solves, fails = np.random.default_rng(5), 2.0, 1.0
    successes = random.binomial(TRIALS, random.beta(solves, fails, (TASKS, RUNS)))
    for k in (1, 2, 3):
        truth = math.prod((solves + i) / (solves + fails + i) for i in range(k))
        rates = np.array([math.comb(s, k) / math.comb(TRIALS, k) for s in range(TRIALS + 1)])
        found = intervals(rates[successes])
        covered = np.mean((found[:, 0] <= truth) & (truth <= found[:, 1]))
        assert 0.93 <= covered <= 0.97, (k, covered)


def test_tasks_are_drawn_within_their_domain():
    """Where domains differ and the tasks of each agree, another draw of tasks changes nothing."""
    values = np.array([[1.0]] * 20 + [[0.0]] * 20)
    domains = ["airline"] * 20 + ["retail"] * 20
    assert intervals(values, domains).tolist() == [[0.5, 0.5]]
    low, high = intervals(values)[0]
    assert low < 0.4 < 0.6 < high


def test_domains_of_few_tasks_are_drawn_together():
    """Within a domain of one task there is no spread at all, and the interval would be empty."""
    values = np.array([[1.0]] * 12 + [[0.0]])
    assert np.array_equal(intervals(values, ["airline"] * 12 + ["retail"]), intervals(values))
    low, high = intervals(values, list("abcdefghijklm"))[0]
    assert low < 0.85 < values.mean() < high


def test_the_order_of_tasks_and_a_second_call_change_nothing():
    values = np.random.default_rng(0).random((30, 3))
    found = intervals(values)
    assert np.array_equal(found, intervals(values))
    assert np.array_equal(found, intervals(values[::-1]))
    domains = ["airline", "retail"] * 15
    assert np.array_equal(intervals(values, domains), intervals(values[::-1], domains[::-1]))
    assert np.allclose(found, intervals(values * 2) / 2)


def test_without_a_task_there_is_no_interval():
    with pytest.raises(ValueError, match="row for each task"):
        intervals(np.empty((0, 2)))
