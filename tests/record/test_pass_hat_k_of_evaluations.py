"""Evaluations count trials by task, and say of how many tasks each number is."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.errors import Fault, FaultKind
from rollout_service.record.evaluation import Evaluation
from rollout_service.record.statistics import pass_hat_k
from rollout_service.record.trajectory import Outcome, TaskRef, Trajectory
from rollout_service.report import tables
from tests.support.trajectories import make_trajectory


def trial(task: int, reward: float | None) -> Trajectory:
    return make_trajectory(task=TaskRef("retail", "test", str(task), task), reward=reward)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=6))
def test_pass_k_is_the_estimator_over_the_tasks(outcomes):
    evaluation = Evaluation(3)
    for task, solved in enumerate(outcomes):
        evaluation.add(trial(task, float(each)) for each in solved)
    counts = [(3, sum(solved)) for solved in outcomes]
    rates = evaluation.pass_rates
    assert [rate.value for rate in rates] == pytest.approx([pass_hat_k(counts, k) for k in (1, 2, 3)])
    assert all(rate.interval[0] <= rate.value <= rate.interval[1] for rate in rates)
    assert {rate.tasks for rate in rates} == {len(outcomes)}


def test_a_task_with_too_few_scored_trials_is_left_out_of_pass_k_and_counted():
    evaluation = Evaluation(2)
    evaluation.add([trial(0, 1.0), trial(0, 0.4), trial(1, 1.0)])
    fault = Fault(FaultKind.POLICY, "Timeout", "no answer", retryable=True)
    evaluation.add(
        [
            make_trajectory(
                task=TaskRef("retail", "test", "1", 1),
                reward=None,
                fault=fault,
                segments=[],
                outcome=Outcome.ABORTED,
                termination_reason="fault",
            )
        ]
    )
    assert [(rate.k, rate.value, rate.tasks) for rate in evaluation.pass_rates] == [(1, 0.75, 2), (2, 0.0, 1)]
    said = json.loads(json.dumps(evaluation.to_dict()))
    assert (said["tasks"], said["episodes"], said["scored"]) == (2, 4, 3)
    assert said["faults"] == {"policy": {"episodes": 1, "first": "Timeout: no answer"}}
    assert said["domains"]["retail"]["mean_reward"] == pytest.approx(0.8)


def test_without_a_trial_there_is_no_number():
    assert Evaluation(4).to_dict()["pass"] == []


def test_domains_have_rates_of_their_own_and_tasks_with_fewer_trials_are_named():
    evaluation = Evaluation(2)
    evaluation.add([trial(0, 1.0), trial(0, 1.0), trial(1, 0.0)])
    airline = TaskRef("airline", "test", "7", 7)
    evaluation.add([make_trajectory(task=airline, reward=0.0), make_trajectory(task=airline, reward=1.0)])
    rates = {name: [(r.k, r.value, r.tasks) for r in each] for name, each in evaluation.domain_pass_rates.items()}
    assert rates == {"retail": [(1, 0.5, 2), (2, 1.0, 1)], "airline": [(1, 0.5, 1), (2, 0.0, 1)]}
    assert evaluation.fewer == {"retail/test/1": 1}
    said = json.loads(json.dumps(evaluation.to_dict()))
    assert said["fewer_trials"] == evaluation.fewer
    assert [each["k"] for each in said["domain_pass"]["airline"]] == [1, 2]


def test_the_smallest_difference_follows_from_the_variance_within_tasks():
    evaluation = Evaluation(4)
    for task in range(25):
        evaluation.add(trial(task, float(n < 2)) for n in range(4))  # the sample variance of 1, 1, 0, 0 is 1/3
    found = evaluation.smallest_difference
    assert found is not None
    error = math.sqrt(2 / 3 / (4 * 25))
    assert found.significant == pytest.approx(1.96 * error, rel=1e-4)
    assert found.detectable == pytest.approx((1.96 + 0.8416) * error, rel=1e-4)
    assert (found.tasks, found.trials, found.is_bound) == (25, 4, False)


def test_a_task_with_one_trial_leaves_the_smallest_difference_nearly_as_it_is():
    evaluation = Evaluation(4)
    for task in range(25):
        evaluation.add(trial(task, float(n < 2)) for n in range(4 if task else 1))
    found = evaluation.smallest_difference
    assert found is not None
    assert found.significant == pytest.approx(1.96 * math.sqrt(2 / 3 * (24 / 4 + 1)) / 25, rel=1e-4)
    assert (found.trials, found.most_trials, found.is_bound) == (1, 4, False)
    assert "With 25 tasks and 1 to 4 trials of each" in tables.of_evaluation(evaluation, 0)[0].notes[0]


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_trials_that_all_went_the_same_way_do_not_show_small_differences(reward):
    """None of 20 trials succeeded: a chance of 10 % would still give that one time in eight."""
    evaluation = Evaluation(2)
    evaluation.add(trial(task, reward) for task in range(10) for _ in range(2))
    found = evaluation.smallest_difference
    assert found is not None
    assert found.significant == pytest.approx(1.96 * math.sqrt(2 * (1 / 22) * (21 / 22) / 20), rel=1e-4)
    assert found.significant > 0.1


def test_of_one_trial_a_task_the_smallest_difference_is_a_bound_and_never_zero():
    evaluation = Evaluation(1)
    evaluation.add(trial(task, float(task < 5)) for task in range(10))
    found = evaluation.smallest_difference
    assert found is not None
    assert found.is_bound
    assert found.significant == pytest.approx(1.96 * math.sqrt(2 * 0.25 / 10), rel=1e-4)
    assert Evaluation(1).smallest_difference is None
