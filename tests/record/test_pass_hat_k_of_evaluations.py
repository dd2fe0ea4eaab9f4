"""Evaluations count trials by task, and say of how many tasks each number is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.errors import Fault, FaultKind
from rollout_service.record.evaluation import Evaluation
from rollout_service.record.statistics import pass_hat_k
from rollout_service.record.trajectory import Outcome, TaskRef, Trajectory
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
