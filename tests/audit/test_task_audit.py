"""The audit of tasks: three policies, official rewards, and what is said of tasks that reward nothing."""

from __future__ import annotations

import json

import pytest
import typer.testing

from rollout_service.audit import task_audit
from rollout_service.cli.entry import app
from rollout_service.errors import TaskError
from rollout_service.tau2 import compat, domain, gold, random_calls, tasks


def audited(name: str, *ids: str) -> list[task_audit.TaskAudit]:
    return list(task_audit.audit_tasks(tasks.references(name, "base", list(ids) or None)))


def test_a_task_whose_actions_write_rewards_only_the_gold_policy():
    [found] = audited("airline", "2")
    assert (found.writes, found.binds) == (True, ["DB"])
    assert (found.nothing, found.random, found.gold) == (0, 0, 1)


def test_an_airline_task_that_asks_for_nothing_rewards_doing_nothing():
    [found] = audited("airline", "0")
    assert (found.writes, found.binds) == (False, [])
    assert (found.nothing, found.gold) == (1, 1)


def test_what_must_be_said_binds_where_nothing_is_written():
    [found] = audited("airline", "3")
    assert (found.writes, found.binds, found.nothing) == (False, ["COMMUNICATE"], 0)


def test_the_user_of_a_policy_that_does_nothing_does_nothing_either():
    task = next(t for t in tasks.references("telecom") if gold.user_blocks(tasks.get(t)))
    [found] = audited("telecom", task.task_id)
    assert (found.writes, found.nothing, found.gold) == (True, 0, 1)


def test_every_task_of_a_split_has_a_row_and_counts_follow_from_the_rows():
    rows = audited("mock")
    assert [row.task_id for row in rows] == [reference.task_id for reference in tasks.references("mock")]
    counts = task_audit.summary(rows)["mock"]
    assert (counts["tasks"], counts["write"], counts["gold"], counts["nothing"]) == (9, 6, 8, 1)
    assert counts["binds"] == {"ACTION": 1, "COMMUNICATE": 1, "DB": 6, "ENV_ASSERTION": 2}


def test_random_calls_follow_from_their_seed_and_are_valid():
    shared = domain.get("mock")
    steps = random_calls.random_steps(shared, 20, "1")
    assert steps == random_calls.random_steps(shared, 20, "1") != random_calls.random_steps(shared, 20, "2")
    schemas = {schema["function"]["name"]: schema["function"]["parameters"] for schema in shared.tool_schemas(False)}
    calls = [call for step in steps for call in step.calls]
    assert len(calls) == 20
    assert all(set(arguments) == set(schemas[name].get("required", [])) for name, arguments in calls)
    assert steps[-1].text == gold.GOODBYE


def test_a_task_s_hash_follows_from_what_shapes_its_episodes_alone():
    task = tasks.get(tasks.references("retail")[0])
    described = task.model_copy(update={"description": None})
    asked = task.model_copy(update={"ticket": "another one"})
    assert tasks.content_hash(task) == tasks.content_hash(described) != tasks.content_hash(asked)


def test_reports_of_two_distributions_are_compared_task_by_task():
    ours = task_audit.report(audited("mock", "create_task_1", "update_task_1"))
    theirs = json.loads(json.dumps(ours))
    assert task_audit.differences(ours, theirs) == []
    theirs["tasks"][0] |= {"content_hash": "0", "gold": 0.0}
    del theirs["tasks"][1]
    assert task_audit.differences(ours, theirs) == [
        ("mock", "create_task_1", ["content_hash", "gold 1.0 / 0.0"]),
        ("mock", "update_task_1", [f"only in {ours['distribution']} {ours['version']}"]),
    ]
    with pytest.raises(TaskError, match="no report of an audit"):
        task_audit.differences(ours, {"tasks": 3})


def test_the_command_prints_json_that_the_command_compares_with(tmp_path):
    command = ["tasks", "--audit", "--domain", "mock", "--jobs", "1"]
    runner = typer.testing.CliRunner()
    printed = runner.invoke(app, [*command, "--json"])
    assert json.loads(printed.stdout)["domains"]["mock"]["tasks"] == 9
    (tmp_path / "audit.json").write_text(printed.stdout)
    assert "0 tasks differ" in runner.invoke(app, [*command, "--against", str(tmp_path / "audit.json")]).stdout
    shown = runner.invoke(app, command).stdout
    assert "mock rewards doing nothing in 1: create_task_1_nl_eval" in " ".join(shown.split())


def test_a_task_has_the_same_hash_each_time_it_is_read_and_shares_it_with_none():
    read = compat.registry.get_tasks_loader("mock")
    first, again = ([tasks.content_hash(task) for task in read()] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(first)
