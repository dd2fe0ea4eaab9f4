"""Trajectories scored again: the new rewards are the installed tasks', and nothing else changes."""

from __future__ import annotations

import copy
import json

import pytest
import typer.testing

from rollout_service.audit.rescore import rescore
from rollout_service.audit.verify import verify
from rollout_service.cli.entry import app
from rollout_service.record import storage
from rollout_service.record.trajectory import TaskRef, Trajectory
from rollout_service.record.turn_facts import TurnFacts
from rollout_service.tau2 import tasks
from tests.support import episodes


@pytest.fixture(scope="module")
def played() -> Trajectory:
    return episodes.run("mock")


def audited(trajectory: Trajectory) -> list[str]:
    [(_, found)] = verify([trajectory])
    return [str(violation) for violation in found]


def test_what_was_scored_rightly_keeps_its_reward_and_passes_the_audit(played):
    [found] = rescore([played])
    assert (found.reward_changed, found.task_changed, found.problem) == (False, False, "")
    assert found.after.segments is played.segments
    assert found.after.database_hashes == played.database_hashes
    assert audited(found.after) == []


def test_a_reward_under_other_tasks_and_another_release_becomes_the_installed_one(played):
    old = copy.deepcopy(played)
    old.reward, old.task = 0.0, TaskRef("mock", "base", played.task.task_id, 7)
    old.provenance.task_hash, old.provenance.tau2_version = "0" * 16, "1.0"
    assert audited(old) != []
    [found] = rescore([old])
    assert (found.reward_changed, found.task_changed, found.after.reward) == (True, True, 1.0)
    assert audited(found.after) == []


def test_facts_of_turns_are_those_of_the_installed_task_also_where_a_file_has_none(played):
    old = copy.deepcopy(played)
    old.turns[0].facts, old.turns[-1].facts = TurnFacts(), TurnFacts(0, 0, False, [0], [])
    [found] = rescore([old])
    assert [turn.facts for turn in found.after.turns] == [turn.facts for turn in played.turns]
    assert (old.turns[0].facts, audited(found.after)) == (TurnFacts(), [])


def test_flaws_of_the_user_that_depend_on_the_score_are_looked_for_again(played):
    old = copy.deepcopy(played)
    last = len(old.messages) - 1
    old.reward, old.user_flaws, old.provenance.domain_hash = 0.0, {"goal_not_reached": [last]}, "0" * 16
    old.messages[last]["content"] = "(no response) ###STOP###"
    old.messages[1]["content"] = "(no response)"
    [found, scripted] = rescore([old, played])
    assert found.after.user_flaws == {"empty_answer": [1]}
    assert scripted.after.user_flaws is None
    assert audited(found.after) == [], "the hash of a policy that is not installed is not kept"


def test_what_cannot_be_scored_is_left_out_with_its_reason(played):
    gone, torn, judged, aborted = (copy.deepcopy(played) for _ in range(4))
    gone.task = TaskRef("mock", "base", "no such task", 0)
    next(m for m in torn.messages if m["role"] == "tool")["content"] = '"changed"'
    judged.provenance.evaluation, judged.provenance.task_hash = "all_with_nl_assertions", ""
    aborted.reward = None
    reasons = [found.problem for found in rescore([gone, torn, judged, aborted])]
    assert "no task 'no such task'" in reasons[0]
    assert reasons[1].startswith("ValueError: ")
    assert "a judge takes part in its reward" in reasons[2]
    assert reasons[3] == ""


def test_a_judge_s_reward_of_the_same_task_is_kept(played):
    judged = copy.deepcopy(played)
    judged.provenance.evaluation, judged.reward = "all_with_nl_assertions", 0.5
    [found] = rescore([judged])
    assert found.after is judged
    assert judged.provenance.task_hash == tasks.hash_of(judged.task)


def test_the_command_writes_a_new_file_and_says_what_changed(played, tmp_path):
    old = copy.deepcopy(played)
    old.reward, old.provenance.task_hash = 0.0, "0" * 16
    path = tmp_path / "old.jsonl"
    storage.write(path, [played, old])
    before = path.read_bytes()
    done = typer.testing.CliRunner().invoke(app, ["rescore", str(path)], env={"COLUMNS": "200"})
    shown = " ".join(done.stdout.split())
    assert f"{old.trajectory_id} {old.task}: 0 → 1" in shown
    assert f"1 tasks changed since: {old.task}" in shown
    assert "0.500 → 1.000" in shown
    assert path.read_bytes() == before
    rewards = [json.loads(line)["reward"] for line in (tmp_path / "old.rescored.jsonl").read_text().splitlines()]
    assert rewards == [1.0, 1.0]
