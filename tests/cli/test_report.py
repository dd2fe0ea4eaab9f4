"""What a person reads at the end of a collection."""

from __future__ import annotations

import pytest

from rollout_service.cli.report import print_summary
from rollout_service.collecting.progress import CollectionProgress
from rollout_service.errors import POISON_TASK, Fault, FaultKind
from rollout_service.record.batch import IncompleteCollection, TrajectoryBatch
from rollout_service.record.statistics import summarize
from rollout_service.record.trajectory import JudgeUsage, Outcome, TaskRef, UserReview, UserUsage
from tests.support.trajectories import make_trajectory

SILENT = Fault(FaultKind.USER_SIMULATOR, "Timeout", "gpt gave no answer", True)
LOST = Fault(FaultKind.SERVICE, "RayActorError", "the environment actor died", True)


def aborted(fault: Fault):
    return make_trajectory(reward=None, fault=fault, outcome=Outcome.ABORTED, termination_reason="fault", segments=[])


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_a_mean_over_one_of_eight_episodes_is_seen_to_be_one(wide, capsys):
    print_summary(summarize([make_trajectory(reward=1.0), *[aborted(SILENT)] * 7]), 60.0)
    first = rows(capsys.readouterr().out)[0]
    assert first[:4] == ["retail", "8", "1", "1.000"], "episodes, scored, mean reward"


def test_each_kind_of_fault_is_told_once_with_its_remedy(wide, capsys):
    print_summary(summarize([aborted(LOST), aborted(SILENT), aborted(SILENT)]), 60.0)
    lines = [line for line in capsys.readouterr().out.splitlines() if " aborted by " in line and "│" not in line]
    assert lines == [
        "2 aborted by user_simulator, the first with: Timeout: gpt gave no answer " + FaultKind.USER_SIMULATOR.remedy,
        "1 aborted by service, the first with: RayActorError: the environment actor died " + FaultKind.SERVICE.remedy,
    ]


def test_tasks_that_kill_their_actors_are_named(wide, capsys):
    poison = Fault(FaultKind.SERVICE, POISON_TASK, "10 attempts lost their environment actor", False)
    one = aborted(poison)
    print_summary(summarize([one, one, aborted(LOST), make_trajectory()]), 60.0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Quarantined")]
    said = "Quarantined, because every attempt lost its environment actor"
    assert lines == [f"{said}: {one.task} 2. Leave them out with tasks.ids."]


def test_a_collection_without_faults_tells_of_none(wide, capsys):
    print_summary(summarize([make_trajectory()]), 60.0)
    assert "aborted" not in capsys.readouterr().out


def test_every_kind_of_fault_has_a_remedy():
    assert all(kind.remedy.endswith(".") for kind in FaultKind)


def test_an_incomplete_collection_says_what_to_do_about_its_faults():
    error = IncompleteCollection(TrajectoryBatch([]), [aborted(SILENT), aborted(LOST)])
    assert FaultKind.USER_SIMULATOR.remedy in str(error)
    assert FaultKind.SERVICE.remedy in str(error)
    assert FaultKind.POLICY.remedy not in str(error)


def test_progress_says_how_many_have_no_reward(capsys):
    with CollectionProgress(3) as progress:
        progress.add([make_trajectory(), aborted(SILENT), aborted(LOST)])
    assert capsys.readouterr().err.strip().endswith(", 2 without a reward")


def test_costs_are_told_for_an_episode_a_task_and_all_together(wide, capsys):
    judged = make_trajectory(task=TaskRef("retail", "test", "9", 9), judge_usage=JudgeUsage(cost_usd=0.05))
    print_summary(summarize([make_trajectory(), make_trajectory(), judged]), 60.0, is_replayed=True)
    told = dict(row for row in rows(capsys.readouterr().out) if len(row) == 2)
    assert told["user simulators"] == "$0.7500"
    assert told["judges"] == "$0.0500"
    assert told["cost"] == "$0.8000, $0.2667 an episode"
    assert told["an episode of a task"] == f"$0.2500 ({make_trajectory().task}) to $0.3000 (retail/test/9)"
    assert told["spent"].startswith("nothing: the answers came from the tape")


def test_a_cost_that_is_not_known_is_told_as_not_known(wide, capsys):
    unpriced = make_trajectory(user_usage=UserUsage(cost_usd=None))
    print_summary(summarize([make_trajectory(), unpriced]), 60.0)
    told = dict(row for row in rows(capsys.readouterr().out) if len(row) == 2)
    assert told["user simulators"] == "not known"
    assert told["cost"] == "not known for 1 of 2 episodes; the others $0.2500, $0.2500 an episode"


def test_flaws_of_the_user_have_their_rates_and_intervals_in_all_and_by_task(wide, capsys):
    other = TaskRef("telecom", "test", "[mobile_data_issue]airplane_mode_on[PERSONA:Hard]", 9)
    flawed = [make_trajectory(user_flaws={"empty_answer": [1]}, task=other) for _ in range(2)]
    reviewed = make_trajectory(user_review=UserReview("m", {"errors": [{"severity": "minor"}]}), user_flaws={})
    failed = make_trajectory(user_review=UserReview("m", None, "it failed"), user_flaws={"tool_misuse": [1]})
    print_summary(summarize([*flawed, reviewed, failed]), 60.0)
    told = capsys.readouterr().out
    assert f"$0.2500 ({other})" in told
    assert ["any", "3 of 4", "0.750", "0.301 to 0.954"] in rows(told)
    assert [str(other), "2 of 2", "1.000", "0.342 to 1.000", "empty_answer"] in rows(told)
    assert [str(failed.task), "1 of 2", "0.500", "0.095 to 0.905", "tool_misuse"] in rows(told)
    assert ["minor", "1 of 1", "1.000", "0.207 to 1.000"] in rows(told)
    assert "Not reviewed, because the reviewer failed: 1 episodes." in told
