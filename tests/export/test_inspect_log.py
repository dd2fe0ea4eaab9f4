"""Inspect's log: what is in the archive, and that Inspect's own library reads it."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from dataclasses import replace

import pytest

from rollout_service.export.exporting import export
from rollout_service.export.inspect_log import sample
from rollout_service.record import storage
from tests.support import episodes
from tests.support.trajectories import make_trajectory

PYTHON = os.environ.get("INSPECT_PYTHON")

READ = """
import json, sys
from inspect_ai.log import read_eval_log, read_eval_log_sample_summaries
log = read_eval_log(sys.argv[1])
summaries = read_eval_log_sample_summaries(sys.argv[1])
score = log.results.scores[0]
print(json.dumps({
    "status": log.status, "model": log.eval.model, "metrics": {n: m.value for n, m in score.metrics.items()},
    "samples": [[s.id, s.epoch, s.scores["tau2_reward"].value, [m.role for m in s.messages]] for s in log.samples],
    "summaries": [[s.id, s.epoch, s.scores["tau2_reward"].value] for s in summaries],
}))
"""


@pytest.fixture(scope="module")
def played():
    """Two trials of three tasks with a policy that errs."""
    runner = episodes.runner(episodes.settings(policy__script__early_stop=0.4))
    return [
        runner.run(episodes.request(episodes.task("mock", n), seed=5 * n + trial, name=str(n), sample=trial))
        for n in range(3)
        for trial in range(2)
    ]


@pytest.fixture(scope="module")
def log(played, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    storage.write(folder / "mock.jsonl", played)
    return export(folder / "mock.jsonl", "inspect", folder / "mock.eval").output


def test_a_sample_is_a_trial_with_tau2_s_reward_and_the_results_have_pass_k(played, log):
    with zipfile.ZipFile(log) as archive:
        names, header = archive.namelist(), json.loads(archive.read("header.json"))
        samples = [json.loads(archive.read(name)) for name in names if name.startswith("samples/")]
        summaries = json.loads(archive.read("summaries.json"))
    assert [(s["id"], s["epoch"]) for s in samples] == [(t.task.task_id, t.sample_index + 1) for t in played]
    assert [s["scores"]["tau2_reward"]["value"] for s in samples] == [t.reward for t in played]
    assert [s["uuid"] for s in summaries] == [t.trajectory_id for t in played]
    metrics = {name: each["value"] for name, each in header["results"]["scores"][0]["metrics"].items()}
    assert metrics["mean"] == metrics["pass^1"] == sum(t.reward for t in played) / len(played)
    assert 0 < metrics["pass^2"] < metrics["pass^1"] < 1
    assert header["eval"]["config"] == {"epochs": 2}


def test_an_answer_names_the_tool_that_was_called_and_what_the_policy_wrote_is_generated(played):
    answers = 0
    for each in played:
        messages = sample(each, 1)["messages"]
        names = {call["id"]: call["function"] for message in messages for call in message.get("tool_calls", [])}
        for message in messages:
            if message["role"] == "tool":
                assert message["function"] == names[message["tool_call_id"]]
                answers += 1
        generated = [message for message in messages if message.get("source") == "generate"]
        assert len(generated) == sum(turn.message_index is not None for turn in each.turns)
    assert answers


def test_the_limit_that_ended_an_episode_is_in_its_sample_and_in_the_list_of_samples(tmp_path):
    trajectory = episodes.runner(episodes.settings(limits__max_turns=1)).run(episodes.request(episodes.task("mock")))
    storage.write(tmp_path / "short.jsonl", [trajectory])
    with zipfile.ZipFile(export(tmp_path / "short.jsonl", "inspect", tmp_path / "short.eval").output) as archive:
        [summary] = json.loads(archive.read("summaries.json"))
    assert sample(trajectory, 1)["limit"] == {"type": "custom", "limit": 1, "reason": "max_turns"}
    assert summary["limit"] == "max_turns"


def test_only_the_chosen_domain_s_episodes_are_counted(played, tmp_path):
    others = [
        replace(each, trajectory_id=f"o{n}", task=replace(each.task, domain="x")) for n, each in enumerate(played)
    ]
    storage.write(tmp_path / "two.jsonl", [*others, *played])
    with zipfile.ZipFile(
        export(tmp_path / "two.jsonl", "inspect", tmp_path / "a.eval", domain="mock").output
    ) as archive:
        header = json.loads(archive.read("header.json"))
    assert (header["eval"]["config"], header["eval"]["dataset"]["samples"]) == ({"epochs": 2}, 3)
    assert (header["results"]["total_samples"], header["results"]["completed_samples"]) == (6, 6)


def test_a_user_s_own_calls_are_in_the_store_and_not_in_the_messages():
    call = {"id": "c", "name": "toggle", "arguments": {}, "requestor": "user"}
    said = [
        {"role": "user", "content": "Hello."},
        {"role": "user", "content": None, "tool_calls": [call]},
        {"role": "tool", "id": "c", "content": "on", "requestor": "user"},
        {"role": "assistant", "content": "Goodbye."},
    ]
    trajectory = make_trajectory(messages=said)
    written = sample(trajectory, 1)
    assert [(message["role"], message["content"]) for message in written["messages"]] == [
        ("user", "Hello."),
        ("assistant", "Goodbye."),
    ]
    assert written["store"] == {"tau2_messages": said}
    assert sample(replace(trajectory, messages=said[:1]), 1)["store"] == {}


@pytest.mark.skipif(PYTHON is None, reason="needs INSPECT_PYTHON, a Python with inspect-ai")
def test_inspect_s_own_library_reads_the_log(played, log):
    done = subprocess.run([str(PYTHON), "-c", READ, str(log)], capture_output=True, text=True, check=True)
    read = json.loads(done.stdout)
    assert (read["status"], read["model"]) == ("success", "scripted")
    assert read["metrics"]["pass^1"] == sum(t.reward for t in played) / len(played)
    assert sorted(sample[:3] for sample in read["samples"]) == sorted(read["summaries"])
    assert len(read["samples"]) == len(played)
    assert read["samples"][0][3][:3] == ["assistant", "user", "assistant"]
