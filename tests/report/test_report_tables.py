"""What the tables of a report say of numbers that are known."""

from __future__ import annotations

from rollout_service.record.evaluation import Evaluation
from rollout_service.record.trajectory import TaskRef, Timing, Trajectory
from rollout_service.report import tables
from rollout_service.report.run import Run
from tests.support.trajectories import make_trajectory


def trial(task: int, reward: float = 1.0, **fields: object) -> Trajectory:
    return make_trajectory(task=TaskRef("retail", "test", str(task), task), reward=reward, **fields)


def test_a_rate_from_fewer_tasks_says_so_and_the_tasks_are_named():
    evaluation = Evaluation(3)
    evaluation.add([*[trial(0)] * 3, trial(1)])
    rates, fewer = tables.of_evaluation(evaluation, 5)
    [row] = rates.rows
    assert row[:2] == ["retail", "2"]
    assert [cell.partition(", ")[2] for cell in row[2:]] == ["", "1 tasks", "1 tasks"]
    assert list(fewer.rows) == [["retail/test/1", "1", "pass^2 to pass^3"]]


def test_with_one_trial_of_each_task_the_shown_difference_is_told_as_a_bound():
    said = {}
    for trials in (1, 2):
        evaluation = Evaluation(trials)
        evaluation.add(trial(task, float(task % 2)) for task in range(4) for _ in range(trials))
        said[trials] = any("upper bound" in note for note in tables.of_evaluation(evaluation, 0)[0].notes)
    assert said == {1: True, 2: False}


def test_totals_and_rows_of_tasks_have_the_tokens_and_seconds_of_the_episodes():
    timing = Timing(queue_seconds=9.0, policy_seconds=3.0, user_seconds=1.0)
    played = [trial(0, timing=timing), trial(0, timing=timing)]
    run, tokens = Run(played), played[0].policy_token_count
    _, totals = tables.of_summary(run)
    told = dict(totals.rows)
    usage = played[0].user_usage
    assert told["policy tokens"] == f"{2 * tokens:,}"
    assert told["user simulators' tokens"] == f"{2 * (usage.prompt_tokens + usage.completion_tokens):,}"
    assert told["episodes' time"] == "policy 75%, user 25%, environment 0%, evaluation 0%"
    share = played[0].cached_token_count / played[0].prompt_token_count
    assert told["prompt tokens"] == f"{2 * played[0].prompt_token_count:,}, {share:.0%} of them from the prefix cache"
    *_, of_tasks = tables.of_run(run, 1)
    row = dict(zip(of_tasks.columns, of_tasks.rows[0], strict=True))
    assert (row["task"], row["solved"], row["tokens"], row["seconds"]) == ("retail/test/0", "2/2", f"{tokens:,}", "4.0")
