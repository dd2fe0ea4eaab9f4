"""pass^k of airline's test split equals what τ²-bench's own metrics say of the exported episodes."""

from __future__ import annotations

import math

from tau2.data_model.simulation import Results
from tau2.metrics.agent_metrics import compute_metrics, get_tasks_pass_hat_k

from rollout_service.export.exporting import export
from rollout_service.record import storage
from rollout_service.record.statistics import task_pass_rate
from rollout_service.report.run import Run
from rollout_service.tau2 import tasks
from tests.support import episodes

TRIALS = 4
ERRS = {"policy__script__wrong_argument": 0.12, "policy__script__early_stop": 0.05, "limits__max_turns": 200}


def test_pass_k_equals_tau2s_own_metrics_to_the_last_digit(tmp_path):
    runner = episodes.runner(episodes.settings(tasks__domain="airline", **ERRS))
    chosen = tasks.references("airline", "test")
    path = tmp_path / "t.parquet"
    storage.write(
        path,
        (
            runner.run(episodes.request(task, 1000 * trial + task.index, f"{task.task_id}-{trial}", trial))
            for task in chosen
            for trial in range(TRIALS)
        ),
    )
    evaluation = Run.of([path]).evaluation
    results = Results.load(export([path], "tau2", tmp_path / "t.json").output)
    assert len(results.simulations) == TRIALS * len(chosen) == 80

    by_task = get_tasks_pass_hat_k(results)
    for task, counts in evaluation.solved.items():
        own = [task_pass_rate(counts, k) for k in range(1, TRIALS + 1)]
        assert own == [by_task.loc[task.rpartition("/")[2], f"pass^{k}"] for k in range(1, TRIALS + 1)]
    theirs = compute_metrics(results).pass_hat_ks
    assert sorted(theirs) == [rate.k for rate in evaluation.pass_rates] == [1, 2, 3, 4]
    assert 0.0 < theirs[4] < theirs[1] < 1.0
    for rate in evaluation.pass_rates:
        assert abs(rate.value - theirs[rate.k]) <= math.ulp(rate.value)  # pandas rounds while it adds up
