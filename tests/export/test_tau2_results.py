"""τ²-bench's own tools read what is exported to them, and compute what this service computes."""

from __future__ import annotations

import json
import math
import os
import subprocess
from dataclasses import replace

import pytest

from rollout_service.errors import ConfigError, StorageError, TaskError
from rollout_service.export.exporting import export
from rollout_service.export.tau2_results import simulation
from rollout_service.record import storage
from rollout_service.record.evaluation import Evaluation
from rollout_service.record.trajectory import TaskRef, UserReview
from rollout_service.tau2 import compat, tasks
from tests.support import episodes

TRIALS = 3

PYTHON = os.environ.get("TAU2_UPSTREAM_PYTHON")

METRICS = """
import json, sys
from pathlib import Path
from tau2.data_model.simulation import Results
from tau2.metrics.agent_metrics import compute_metrics
print(json.dumps(list(compute_metrics(Results.load(Path(sys.argv[1]))).pass_hat_ks.values())))
"""
"""A program for the other distribution."""


@pytest.fixture(scope="module")
def played():
    """Three trials of each of mock's tasks with a policy that errs, and one that hits a limit of ours."""
    runner = episodes.runner(episodes.settings(policy__script__early_stop=0.3, policy__script__malformed_call=0.2))
    found = [
        runner.run(episodes.request(task, seed=trial, name=f"{task.task_id}", sample=trial))
        for task in tasks.references("mock")
        for trial in range(TRIALS)
    ]
    short = episodes.runner(episodes.settings(limits__max_turns=1)).run(
        episodes.request(found[-1].task, name=found[-1].task.task_id, sample=TRIALS - 1)
    )
    return [*found[:-1], replace(short, provenance=found[-1].provenance)]


@pytest.fixture(scope="module")
def stored(played, tmp_path_factory):
    path = tmp_path_factory.mktemp("tau2") / "mock.jsonl"
    storage.write(path, played)
    return path


def load(path):
    from tau2.data_model.simulation import Results

    return Results.load(path)


def assertion_raised(trajectory):
    """Whether τ²'s own evaluation raises, as it does on some unfinished conversations of mock."""
    return "assertions_raised" in (trajectory.reward_info["info"] or {})


def test_tau2_s_metrics_of_the_export_are_ours(played, stored, tmp_path):
    from tau2.metrics import agent_metrics

    done = export(stored, "tau2", tmp_path / "mock.json")
    assert (done.trajectories, done.left_out) == (len(played), {})
    results = load(done.output)
    ours = Evaluation(TRIALS)
    ours.add(played)
    values = [rate.value for rate in ours.pass_rates]
    assert 0 < values[-1] < values[0] < 1
    by_task = agent_metrics.get_tasks_pass_hat_k(results)
    assert [math.fsum(by_task[f"pass^{k}"]) / len(by_task) for k in range(1, TRIALS + 1)] == values
    metrics = agent_metrics.compute_metrics(results)
    assert list(metrics.pass_hat_ks.values()) == pytest.approx(values, rel=1e-15)
    assert metrics.avg_reward == pytest.approx(sum(t.reward for t in played) / len(played), rel=1e-15)


@pytest.mark.skipif(compat.UPSTREAM or PYTHON is None, reason="needs TAU2_UPSTREAM_PYTHON, a Python with upstream")
def test_upstream_computes_the_same_from_what_is_exported_here(played, stored, tmp_path):
    path = export(stored, "tau2", tmp_path / "mock.json").output
    done = subprocess.run([str(PYTHON), "-c", METRICS, str(path)], capture_output=True, text=True, check=True)
    ours = Evaluation(TRIALS)
    ours.add(played)
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx(
        [rate.value for rate in ours.pass_rates], rel=1e-15
    )


def test_tau2_scores_the_exported_messages_as_they_were_scored(played, stored, tmp_path):
    from tau2.scripts.evaluate_trajectories import compute_simulation_rewards

    results = load(export(stored, "tau2", tmp_path / "mock.json").output)
    scored = {each.trajectory_id: each.reward for each in played if not assertion_raised(each)}
    results.simulations = [each for each in results.simulations if each.id in scored]
    again = compute_simulation_rewards(results).simulations
    assert {each.id: each.reward_info.reward for each in again} == scored
    assert {0.0, 1.0} == set(scored.values())


def test_tau2_s_view_and_its_checks_for_the_leaderboard_take_the_export(played, stored, tmp_path, monkeypatch):
    from rich.prompt import IntPrompt, Prompt
    from tau2.scripts import view_simulations
    from tau2.scripts.leaderboard.prepare_submission import get_metrics, validate_submission_traj_set
    from tau2.scripts.leaderboard.verify_trajectories_public import check_format, check_num_trials, check_tasks

    path = export(stored, "tau2", tmp_path / "mock.json").output
    results, is_read, problem = check_format(path)
    assert (is_read, problem) == (True, "")
    assert check_num_trials(results) == (True, "")
    dated = [task for task in results.tasks if task.initial_state and task.initial_state.message_history]
    assert check_tasks(results) == (False, f"Task mismatches found in {len(dated)} tasks")  # τ² dates them as it reads
    monkeypatch.setattr(compat.registry, "get_tasks_loader", lambda _: lambda _: results.tasks)
    assert check_tasks(results) == (True, "")
    assert validate_submission_traj_set([results]) == (True, "")
    _, by_domain, model, user = get_metrics([results])
    mean = sum(each.reward for each in played) / len(played)
    assert by_domain["mock"].pass_1 == pytest.approx(mean * 100 if compat.UPSTREAM else mean)
    assert (model, user) == ("scripted", None)
    menu = iter(["1", "2", "3", "4"])  # a file, its metrics, a simulation, a task; then the last entry, which ends

    def ask(*_, choices=None, **__):
        return next(menu, choices[-1]) if choices else ""

    monkeypatch.setattr(Prompt, "ask", ask)
    monkeypatch.setattr(IntPrompt, "ask", lambda *_, **__: 1)
    shown = view_simulations.ConsoleDisplay.console
    with shown.capture() as text:
        view_simulations.main(sim_file=str(path))
    assert f"Loaded {len(played)} simulations" in text.get()
    assert "Error loading" not in text.get()


def test_the_export_says_what_was_recorded_and_invents_nothing(played, stored, tmp_path):
    written = json.loads(export(stored, "tau2", tmp_path / "mock.json").output.read_text())
    info, first, last = written["info"], written["simulations"][0], written["simulations"][-1]
    assert (info["max_steps"], info["max_errors"], info["num_trials"], info["seed"]) == (200, 10, TRIALS, None)
    assert info["agent_info"] | {"llm_args": None} == {
        "implementation": "llm_agent",
        "llm": "scripted",
        "llm_args": None,
    }
    assert info["user_info"] == {"implementation": "scripted", "llm": None, "llm_args": None}
    assert info["git_commit"] == f"unknown ({compat.DISTRIBUTION} {compat.VERSION})"
    assert (first["trial"], last["trial"]) == (0, TRIALS - 1)
    assert first["messages"] == played[0].messages
    assert first["start_time"] == played[0].started
    assert (last["termination_reason"], last["info"]["termination_reason"]) == ("max_steps", "max_turns")


def test_tasks_stand_in_their_split_s_order_whatever_the_order_of_the_episodes(played, tmp_path):
    storage.write(tmp_path / "mock.jsonl", reversed(played))
    written = json.loads(export(tmp_path / "mock.jsonl", "tau2", tmp_path / "mock.json").output.read_text())
    assert [task["id"] for task in written["tasks"]] == [task.task_id for task in tasks.references("mock")]


def test_limits_that_nobody_recorded_are_asked_for_and_recorded_ones_are_not_changed(played, tmp_path):
    path, first = tmp_path / "old.jsonl", played[0]
    storage.write(path, [replace(first, provenance=replace(first.provenance, limits={}), started="")])
    with pytest.raises(ConfigError, match=r"limits.max_steps is not recorded.*Give --max-steps"):
        export(path, "tau2", tmp_path / "old.json", max_errors=3)
    written = json.loads(export(path, "tau2", tmp_path / "old.json", max_steps=7, max_errors=3).output.read_text())
    assert (written["info"]["max_steps"], written["info"]["max_errors"]) == (7, 3)
    assert written["simulations"][0]["end_time"] == first.messages[-1]["timestamp"]
    storage.write(tmp_path / "new.jsonl", [first])
    with pytest.raises(ConfigError, match=r"--max-steps is 7, and the episodes had 200"):
        export(tmp_path / "new.jsonl", "tau2", tmp_path / "new.json", max_steps=7)


def test_half_of_a_surrogate_pair_leaves_the_file_readable(played, tmp_path):
    said = played[0].messages
    broken = [*said[:-1], said[-1] | {"content": "so \ud83d, and \U0001f600"}]
    storage.write(tmp_path / "mock.jsonl", [replace(played[0], messages=broken)])
    read = load(export(tmp_path / "mock.jsonl", "tau2", tmp_path / "mock.json").output)
    assert read.simulations[0].messages[-1].content == "so \ufffd, and \U0001f600"


def test_a_review_is_written_with_the_severities_that_tau2_s_class_takes(played):
    errors = [{"severity": "critical_helped", "reasoning": "r"}, {"severity": "minor", "reasoning": "r"}]
    reviewed = replace(played[0], user_review=UserReview("judge", {"has_errors": True, "errors": errors}))
    review = simulation(reviewed, 0)["user_only_review"]
    assert [error["severity"] for error in review["errors"]] == ["critical", "minor"]
    assert simulation(played[0], 0)["user_only_review"] is None


def test_episodes_without_a_reward_are_left_out_but_count_as_trials(played, tmp_path):
    path = tmp_path / "mock.jsonl"
    slow = replace(played[0], trajectory_id="slow", reward=None, reward_info=None, termination_reason="wall_time")
    storage.write(path, [*played[:3], slow])
    done = export(path, "tau2", tmp_path / "mock.json")
    assert (done.trajectories, done.left_out) == (3, {"without a reward": 1})
    written = json.loads(done.output.read_text())
    assert (written["info"]["num_trials"], len(written["simulations"])) == (4, 3)
    assert written["rollout_service"]["left_out"] == {"without a reward": 1}


def test_a_task_or_a_release_that_is_not_the_installed_one_is_refused(played, tmp_path):
    first = played[0]
    cases = [("domain_hash", "00", StorageError, "may differ"), ("task_hash", "00", TaskError, "the contents differ")]
    for field, value, error, words in cases:
        path = tmp_path / f"{field}.jsonl"
        storage.write(path, [replace(first, provenance=replace(first.provenance, **{field: value}))])
        with pytest.raises(error, match=words):
            export(path, "tau2", tmp_path / "mock.json")
    assert not (tmp_path / "mock.json").exists()


@pytest.mark.parametrize(("info", "words"), [(None, "has none"), ({"reward": 0.25}, "has 0.25")])
def test_a_reward_that_tau2_would_not_read_is_refused(played, tmp_path, info, words):
    path = tmp_path / "mock.jsonl"
    storage.write(path, [replace(played[0], reward_info=info and played[0].reward_info | info)])
    with pytest.raises(StorageError, match=rf"its reward_info {words}.*rescore"):
        export(path, "tau2", tmp_path / "mock.json")


def test_several_domains_are_refused_and_one_can_be_chosen(played, tmp_path):
    path = tmp_path / "two.jsonl"
    storage.write(path, [played[0], replace(played[1], task=TaskRef("telecom", "base", "1", 0))])
    with pytest.raises(StorageError, match=r"mock and telecom.*--domain"):
        export(path, "tau2", tmp_path / "mock.json")
    done = export(path, "tau2", tmp_path / "mock.json", domain="mock")
    assert (done.trajectories, done.left_out) == (1, {"of another domain": 1})


def test_trials_of_another_domain_s_task_of_the_same_name_are_not_counted(played, tmp_path):
    path, first = tmp_path / "two.jsonl", played[0]
    elsewhere = replace(
        first,
        trajectory_id="other",
        task=replace(first.task, domain="retail"),
        reward=None,
        termination_reason="wall_time",
    )
    storage.write(path, [elsewhere, *played])
    written = json.loads(export(path, "tau2", tmp_path / "mock.json", domain="mock").output.read_text())
    assert written["info"]["num_trials"] == TRIALS
    assert [each["trial"] for each in written["simulations"]] == [each.sample_index for each in played]
    for to, name in (("tau2", "all.json"), ("inspect", "all.eval")):
        with pytest.raises(StorageError, match=r"retail and mock.*--domain"):
            export(path, to, tmp_path / name)
