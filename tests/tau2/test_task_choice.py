"""Tasks of one's own, exclusions and filters: what is played, and what is refused before anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rollout_service import output, preflight
from rollout_service.audit.verify import verify
from rollout_service.collecting.planning import Planner
from rollout_service.collecting.request import CollectionRequest
from rollout_service.config import task_file
from rollout_service.errors import ConfigError, RolloutError, StorageError, TaskError
from rollout_service.record.manifest import Asked
from rollout_service.task_sampling.uniform import UniformSampler
from rollout_service.tau2 import compat, tasks
from rollout_service.tau2.task_choice import TaskChoice
from rollout_service.tau2.task_source import Tau2TaskSource
from tests.support import episodes


def record(position: int, **changes: Any) -> dict[str, Any]:
    """A task of mock, as JSON."""
    task = tasks.get(tasks.references("mock")[position]).model_dump(mode="json", exclude_none=True)
    return task | changes


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.json"
    path.write_text(json.dumps([record(0, id="mine"), record(3, id="yours")]))
    return path


def chosen(**settings: Any) -> list[str]:
    return [task.task_id for task in preflight.check_tasks(episodes.settings(tasks__domain="mock", **settings))]


def test_a_task_of_one_s_own_is_played_recorded_and_audited(own):
    config = episodes.settings(tasks__domain="mock", tasks__path=str(own))
    [first, second] = preflight.check_tasks(config)
    assert (first.task_id, second.task_id, second.index) == ("mine", "yours", 1)
    trajectory = episodes.runner(config).run(episodes.request(first))
    assert (trajectory.reward, trajectory.task.split) == (1.0, str(own))
    assert trajectory.provenance.task_hash == tasks.hash_of(first)
    [(_, violations)] = verify([trajectory])
    assert violations == []


def test_a_plan_draws_the_file_s_tasks_and_no_caller_names_another_file(own):
    config = episodes.settings(tasks__domain="mock", tasks__path=str(own), tasks__exclude=["yours"])
    planner = Planner(config, Tau2TaskSource(config))
    for request in (CollectionRequest(), CollectionRequest(n=3, domain="mock", split="base", seed=1)):
        assert {each.task.task_id for each in planner.plan(request, 0).drawing.requests} == {"mine"}
    assert len(planner.plan(CollectionRequest(domain="airline"), 0).drawing.requests) == 50
    with pytest.raises(TaskError, match=r"split is '/etc/secrets.json'"):
        planner.plan(CollectionRequest(split="/etc/secrets.json"), 0)


def test_an_exclusion_of_the_file_s_tasks_leaves_other_splits_alone(own):
    config = episodes.settings(tasks__domain="mock", tasks__path=str(own), tasks__exclude=["yours"])
    assert {task.task_id for task in TaskChoice(config).references("mock", "base")} >= {
        "create_task_1",
        "update_task_1",
    }


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"user_scenario": None}, r"task 'mine' of .*own.json: user_scenario: .*Correct the field"),
        ({"evaluation_criteria": {"reward_basis": ["MONEY"]}}, r"task 'mine'.*evaluation_criteria.reward_basis.0"),
        (
            {"evaluation_criteria": {"actions": [{"action_id": "1", "name": "creat_task", "arguments": {}}]}},
            r"task 'mine'.*evaluation_criteria.actions.0.name: the assistant has no tool 'creat_task' in mock",
        ),
        ({"id": 3}, r"task number 0 .* has no id"),
        ({"id": "yours"}, r"has the task 'yours' twice"),
    ],
)
def test_a_task_that_cannot_be_used_is_refused_with_its_id_and_field(own, broken, message):
    own.write_text(json.dumps([record(0, id="mine") | broken, record(3, id="yours")]))
    with pytest.raises(TaskError, match=message):
        chosen(tasks__path=str(own))


def test_a_file_that_is_no_list_of_tasks_is_refused(tmp_path):
    for text, message in (("{}", "no list of tasks"), ("[", "cannot be read")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(TaskError, match=message):
            task_file.read(tmp_path / "bad.json")


def test_excluded_tasks_are_never_drawn_and_a_file_may_name_them(tmp_path):
    everything = [task.task_id for task in tasks.references("mock")]
    assert chosen(tasks__exclude=everything[1:]) == everything[:1]
    (tmp_path / "bad.txt").write_text("  # known to be bad\n" + "\n".join(everything[1:]) + "\n")
    assert chosen(tasks__exclude=str(tmp_path / "bad.txt")) == everything[:1]
    (tmp_path / "none.txt").write_text("# none so far\n")
    assert chosen(tasks__exclude=str(tmp_path / "none.txt")) == chosen()
    config = episodes.settings(tasks__domain={"mock": 1, "airline": 1}, tasks__exclude=[f"mock/{everything[0]}"])
    sampler = UniformSampler(Tau2TaskSource(config).pool(config.tasks.domain, "base", None))
    drawn = {sampler.draw().task_id for _ in range(200)}
    assert everything[0] not in drawn >= set(everything[1:])


def test_a_filter_keeps_tasks_by_the_values_of_a_field():
    config = episodes.settings(tasks__domain="airline", tasks__filter={"evaluation_criteria.actions.name": "calculate"})
    kept = [tasks.get(task) for task in preflight.check_tasks(config)]
    assert 0 < len(kept) < 50
    assert all("calculate" in [action.name for action in task.evaluation_criteria.actions] for task in kept)
    assert chosen(tasks__filter={"id": ["update_task_1", "create_task_1"]}) == ["create_task_1", "update_task_1"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks__exclude": ["no_such"]}, "mock has no task 'no_such'"),
        ({"tasks__exclude": ["create_task_1"], "tasks__ids": ["create_task_1"]}, "is left out: tasks.exclude names it"),
        ({"tasks__filter": {"id": "none"}}, "No task of mock/base is left"),
        ({"tasks__filter": {"colour": "red"}}, "no task of mock/base has a field colour"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(settings, message):
    with pytest.raises(TaskError, match=message):
        chosen(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks__path": "tasks.yaml"}, "tasks.path.* is 'tasks.yaml'. Name a file that ends in .json"),
        ({"tasks__path": "t.json", "tasks__split": "test"}, "tasks.path.* goes with one domain, and without a split"),
        ({"tasks__exclude": "/no/such/file"}, "tasks.exclude.* names a file that cannot be read"),
        ({"tasks__exclude": ["7"], "tasks__domain": {"mock": 1, "airline": 1}}, "tasks.exclude.* has '7'.*domain/id"),
    ],
)
def test_settings_that_choose_no_tasks_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        episodes.settings(**{"tasks__domain": "mock", **settings})


def test_a_task_that_needs_a_judge_is_left_out_with_a_word_where_none_is_asked(tmp_path):
    judged = record(0, id="judged")
    judged["evaluation_criteria"] |= {"reward_basis": ["DB", "NL_ASSERTION"], "nl_assertions": ["The agent is polite."]}
    (tmp_path / "own.json").write_text(json.dumps([judged, record(3, id="plain")]))
    own = {"tasks__path": str(tmp_path / "own.json")}
    assert chosen(**own) == ["plain"]
    [said] = TaskChoice(episodes.settings(tasks__domain="mock", **own)).words()
    assert said.startswith("1 tasks are left out of mock: a judge takes part in its reward, and none is named. Set ")
    assert chosen(**own, evaluation__type="all_with_nl_assertions") == ["judged", "plain"]
    named = ["judged", "plain"] if compat.UPSTREAM else ["plain"]
    assert chosen(**own, evaluation__judge__model="openai/m") == named


def test_what_changed_in_a_file_of_tasks_is_said_by_id(own):
    then = task_file.hashes(own)
    own.write_text(json.dumps([record(3, id="new"), record(3, id="mine")]))
    assert task_file.difference(then, task_file.hashes(own)) == "'mine' changed; 'yours' gone; 'new' new"
    assert task_file.difference(then, dict(reversed(then.items()))) == "its tasks stand in another order"
    assert task_file.difference(then, then) == ""


def test_a_file_is_not_resumed_with_another_task_set(own, tmp_path):
    config = episodes.settings(tasks__domain="mock", tasks__path=str(own))
    file = output.Output(tmp_path / "out.jsonl")
    file.ask(config, config)
    file._last = Asked("c", None, 1, 0, 2, dict(file._settings))
    file.ask(config, config)
    own.write_text(json.dumps([record(3, id="mine"), record(3, id="yours")]))
    with pytest.raises(StorageError, match=r"tasks.path has other contents: 'mine' changed"):
        file.ask(config, config)
    other = config.with_overrides({"tasks.exclude": ["yours"]})
    with pytest.raises(RolloutError, match=r"tasks.exclude was \[\] and is \['yours'\]"):
        file.ask(other, other)
