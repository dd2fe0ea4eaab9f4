"""What `report` prints of stored trajectories, and what it refuses."""

from __future__ import annotations

import json

import pytest

from rollout_service.cli.commands.evaluate import with_official_limits
from rollout_service.cli.run_report import print_conditions, print_tables
from rollout_service.collecting.evaluating import conditions
from rollout_service.errors import Fault, FaultKind
from rollout_service.record import storage
from rollout_service.record.trajectory import Outcome, TaskRef
from rollout_service.report.comparison import Comparison
from rollout_service.report.run import Run
from rollout_service.report.tables import Table
from tests.support import episodes
from tests.support.commands import command
from tests.support.trajectories import make_trajectory


def trials(name: str, rewards: list[float], domain: str = "retail"):
    return [
        make_trajectory(
            trajectory_id=f"{name}-{domain}-{task}-{at}",
            collection_id=name,
            task=TaskRef(domain, "test", str(task), task),
            reward=float(at < 2 * reward),
            sample_index=at,
        )
        for task, reward in enumerate(rewards)
        for at in range(2)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    storage.write(folder / "a.jsonl", [*trials("a", [1.0, 0.5, 0.0]), *trials("a", [1.0], "mock")])
    storage.write(folder / "b.jsonl", trials("b", [0.0, 0.5, 1.0]))
    return folder / "a.jsonl", folder / "b.jsonl"


def test_a_report_shows_pass_k_by_domain_and_the_tasks_that_are_solved_least(files):
    done = command("report", files[0], "--show", "2")
    assert done.returncode == 0, done.stderr
    for text in ("retail", "0.500", "pass^2", "0.333", "all", "databases right", "8 of 8", "mean anything"):
        assert text in done.stdout
    tasks = [line for line in done.stdout.splitlines() if line.startswith("│ retail/test/")]
    assert [line.split("│")[1].strip() for line in tasks] == ["retail/test/2", "retail/test/1"]
    assert "and 2 more tasks" in done.stdout


def test_json_has_the_same_numbers_as_python(files):
    done = command("report", *files[:1], "--against", files[1], "--json")
    run, baseline = (Run.of([file]) for file in files)
    expected = run.to_dict() | {"comparison": Comparison(run, baseline).to_dict()}
    assert json.loads(done.stdout) == json.loads(json.dumps(expected))


def test_a_comparison_names_the_tasks_that_changed_sides(files):
    said = command("report", files[0], "--against", files[1]).stdout
    assert "+0.000" in said
    assert "1 task is left out" in said
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│ retail")
    ]
    assert ["retail/test/0", "0/2", "2/2"] in rows
    assert ["retail/test/2", "2/2", "0/2"] in rows


def test_what_cannot_be_reported_is_refused_with_a_remedy(files, tmp_path):
    for arguments, text in (
        ([files[0], "--k", "4"], "Choose k from 1 to 2"),
        ([files[0], files[0]], "Name each file once"),
        ([files[0], "--domain", "airline"], "There are episodes of retail, mock"),
        ([files[1], "--against", files[0], "--domain", "mock"], "has no trajectory of the domain 'mock'"),
        ([tmp_path / "none.jsonl"], "does not exist"),
        ([files[0], "--html", files[1]], "does not end in .html"),
    ):
        refused = command("report", *arguments)
        assert refused.returncode == 2
        assert text in " ".join(refused.stderr.split())


@pytest.mark.parametrize(("width", "broken"), [(100, True), (160, False)])
def test_a_long_name_of_a_task_is_broken_and_leaves_the_numbers_their_room(width, broken, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    name = "telecom/test/" + "x" * 90
    print_tables(
        [Table("Tasks", ("task", "calls valid", "reward"), [[name, "10/12", "0.50"], ["short", "5/6", "1.00"]])]
    )
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    rows = [row for row in rows if row]
    assert [row[1:] for row in rows if row[1]] == [["10/12", "0.50"], ["5/6", "1.00"]]
    assert "".join(row[0] for row in rows) == name + "short"
    assert (len(rows) > 2) is broken


def test_hostile_names_are_text_on_the_terminal_and_in_json(tmp_path):
    """Escapes of a terminal, another direction of writing, rich's markup, and half of a surrogate pair."""
    task = TaskRef("a[/bold]", "test", "\x1b[31m\u202e[red]\ud800", 0)
    fault = Fault(FaultKind.POLICY, "E", "\x1b]0;owned\x07", retryable=False)
    storage.write(
        tmp_path / "a.jsonl",
        [
            make_trajectory(trajectory_id="a", task=task),
            make_trajectory(trajectory_id="b", task=task, reward=None, fault=fault, outcome=Outcome.ABORTED),
        ],
    )
    done = command("report", tmp_path / "a.jsonl")
    assert done.returncode == 0, done.stderr
    assert not {"\x1b", "\u202e", "\x07"} & set(done.stdout)
    for text in ("a[/bold]/test/\\x1b[31m\\u202e[red]\\ud800", "E: \\x1b]0;owned\\x07"):
        assert text in done.stdout
    assert str(task) in json.loads(command("report", tmp_path / "a.jsonl", "--json").stdout)["tasks"]


def test_conditions_say_which_limits_of_training_are_off(capsys):
    running = episodes.settings(limits__max_turns=12, limits__max_steps=100)
    training = running.limits.model_dump() | {"response_length": None}
    print_conditions(conditions(episodes.settings(), None), training | {"max_steps": 200})
    said = " ".join(capsys.readouterr().out.split())
    assert "official conditions: max_steps 200, max_errors 10, and any number of turns" in said
    assert said.endswith("The limits of training differ: limits.max_turns=12.")
    print_conditions(conditions(running, 40), training)
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "not τ²-bench's official conditions: limits.max_turns is 40 instead of no limit, limits.max_steps is 100"
        in said
    )


def test_an_evaluation_takes_official_limits_in_place_of_those_for_training():
    own = episodes.settings(
        limits__max_steps=40, limits__max_errors=3, policy__response_length=500, limits__max_turns=9
    )
    taken = with_official_limits(own, ["limits.max_errors=3"])
    assert (taken.limits.max_steps, taken.limits.max_errors, taken.policy.response_length) == (200, 3, None)
    assert taken.limits.max_turns == 9, "each evaluation's request says it"
    assert with_official_limits(episodes.settings(), []) == episodes.settings()
