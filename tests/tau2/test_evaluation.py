"""Fast evaluation says what the official evaluator says, or leaves it to that; a change of the data is never scored."""

from __future__ import annotations

import pytest

from actors.environment import check_same_data
from rollout_service.audit.verify import verify
from rollout_service.config import Evaluation
from rollout_service.errors import ConfigError, FaultKind, RolloutError, SharedWriteError, Tau2Error
from rollout_service.tau2 import compat, domain, evaluation, fast_evaluation, tasks
from rollout_service.tau2.source_files import SourceFiles
from tests.parity import KINDS, compare, play
from tests.support import episodes

SAMPLE = {"mock": (0, 3, 6), "telecom": (5, 40, 77), "retail": (17, 58), "airline": (31,)}
"""Positions of the tasks that are played in every kind; `make parity` plays them all."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SAMPLE)
def test_fast_and_official_reward_info_are_equal(name, kind):
    references = tasks.references(name)
    compared = [compare(references[position], kind, seed=1) for position in SAMPLE[name]]
    assert [c.difference for c in compared] == [""] * len(compared)
    if kind != "malformed":
        assert {c.evaluator for c in compared} == {"fast"}


def test_the_sample_holds_rewards_of_both_kinds():
    references = tasks.references("telecom")
    rewards = {compare(references[40], kind, seed=1).reward for kind in KINDS}
    assert rewards == {0.0, 1.0}


@pytest.mark.parametrize(("mode", "evaluator"), [("fast", "fast"), ("official", "official"), ("check", "official")])
def test_the_trajectory_says_what_scored_it(mode, evaluator):
    trajectory = episodes.run("telecom", 3, evaluation__mode=mode)
    assert (trajectory.reward, trajectory.provenance.evaluator) == (1.0, evaluator)


def test_an_episode_without_a_score_names_no_evaluator():
    trajectory = episodes.run("telecom", 3, limits__wall_seconds=1e-6)
    assert (trajectory.reward, trajectory.provenance.evaluator) == (None, "")


def test_check_ends_the_collection_with_what_differs(monkeypatch):
    monkeypatch.setattr(fast_evaluation, "gold_hashes", lambda *_: {"assistant": "another", "user": None})
    with pytest.raises(Tau2Error, match=r"task '\d+' of retail: reward is 0.0, officially 1.0; db_check is .*official"):
        episodes.run("retail", 1, evaluation__mode="check")


def test_an_unknown_mode_is_refused_with_the_valid_ones():
    with pytest.raises(ConfigError, match=r"evaluation.mode is 'quick'.*official.*fast.*check"):
        episodes.settings(evaluation__mode="quick")


def test_a_call_whose_argument_became_part_of_the_database_is_left_to_the_official_evaluator():
    shared, task = domain.get("telecom"), tasks.get(episodes.task("telecom", 5))
    script = task.model_copy(deep=True)
    script.evaluation_criteria.actions.append(
        compat.Action(
            action_id="odd",
            name="set_network_mode_preference",
            requestor="user",
            arguments={"mode": {"kept": ["as", "it", "is"]}},
        )
    )
    orchestrator = play(shared.environment(), task, script)
    end, messages = shared.end_state(orchestrator.environment), orchestrator.get_trajectory()
    assert not fast_evaluation.leads_to(messages, end, orchestrator.trajectory, solo=False)
    score = evaluation.score(orchestrator, end, messages, task, shared, "user_stop", Evaluation())
    assert score.evaluator == "official"


MODES = ("fast", "official", "check")

NOT_FOUND = {
    "function": "assert_task_status",
    "arguments": {"task_id": "task_2", "expected_status": "pending"},
    "error": "ValueError: Task task_2 not found",
}


def assert_not_met(trajectory, note) -> None:
    """The episode is scored 0 for its assertion, says so, and replays."""
    assert (trajectory.outcome, trajectory.fault, trajectory.reward) == ("completed", None, 0.0)
    [check] = [check for check in trajectory.reward_info["env_assertions"] if not check["met"]]
    assert check["reward"] == 0.0
    assert trajectory.reward_info["info"]["assertions_raised"] == [note]
    assert [str(v) for _, found in verify([trajectory]) for v in found] == []


@pytest.mark.parametrize("kind", ["all", "env"])
@pytest.mark.parametrize("mode", MODES)
def test_a_policy_that_never_creates_the_task_has_not_met_the_assertion_about_it(mode, kind):
    trajectory = episodes.run(
        "mock", 1, evaluation__mode=mode, evaluation__type=kind, policy__script={"early_stop": 1.0}
    )
    assert_not_met(trajectory, NOT_FOUND)


def test_an_assertion_that_is_met_has_no_note():
    trajectory = episodes.run("mock", 1)
    assert trajectory.reward == 1.0
    assert "assertions_raised" not in trajectory.reward_info["info"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["telecom", "telecom-workflow"])
def test_text_where_settings_belong_makes_an_assertion_about_them_not_met(name, mode):
    task = next(
        reference
        for reference in tasks.references(name)
        if {a.func_name for a in tasks.get(reference).evaluation_criteria.env_assertions} == {"assert_can_send_mms"}
        and not any(a.name == "refuel_data" for a in tasks.get(reference).evaluation_criteria.actions)
    )
    steps = [
        episodes.written(action.name, **action.arguments)
        for action in tasks.get(task).evaluation_criteria.actions
        if action.name not in ("reset_apn_settings", "reboot_device")
    ]
    odd = episodes.written("set_apn_settings", apn_settings="internet")
    policy = episodes.WrittenTurns(*steps, odd, episodes.written("done"))
    config = episodes.settings(agent="solo", evaluation__mode=mode)
    trajectory = episodes.runner(config, policy).run(episodes.request(task))
    assert_not_met(
        trajectory,
        {
            "function": "assert_can_send_mms",
            "arguments": {"expected_status": True},
            "error": "AttributeError: 'str' object has no attribute 'mmsc_url'",
        },
    )


@pytest.mark.parametrize("mode", MODES)
def test_an_assertion_that_raises_whatever_the_policy_does_is_the_task_s_fault_and_not_tried_again(mode, monkeypatch):
    task = tasks.get(episodes.task("mock", 1))
    broken = task.evaluation_criteria.env_assertions[0].model_copy(update={"func_name": "assert_no_such_thing"})
    monkeypatch.setattr(task.evaluation_criteria, "env_assertions", [broken])
    trajectory = episodes.run("mock", 1, evaluation__mode=mode)
    assert (trajectory.outcome, trajectory.reward) == ("aborted", None)
    assert (trajectory.fault.kind, trajectory.fault.retryable) == (FaultKind.EVALUATOR, False)
    assert "assert_no_such_thing of mock's task 'create_task_1_with_env_assertions' raises" in trajectory.fault.message


@pytest.mark.parametrize("error", [MemoryError("full"), OSError("disk"), SharedWriteError("write")])
def test_a_failure_of_the_machine_in_an_assertion_is_never_the_policy_s(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(type(domain.get("mock").environment().tools), "assert_task_status", fail)
    trajectory = episodes.run("mock", 1)
    assert (trajectory.outcome, trajectory.reward, trajectory.fault.kind) == ("aborted", None, FaultKind.EVALUATOR)


def test_check_asks_a_judge_once(monkeypatch):
    asked = []

    def judge(*_, **__):
        asked.append(1)
        return compat.RewardInfo(reward=1.0, nl_assertions=[], reward_breakdown={})

    judge_class = compat.evaluator_nl_assertions.NLAssertionsEvaluator
    monkeypatch.setattr(judge_class, "calculate_reward", judge)
    trajectory = episodes.run("retail", 1, evaluation__mode="check", evaluation__type="all_with_nl_assertions")
    assert (trajectory.reward, len(asked)) == (1.0, 1)


def test_messages_out_of_order_are_left_to_the_official_evaluator():
    shared, task = domain.get("retail"), tasks.get(episodes.task("retail", 1))
    orchestrator = play(shared.environment(), task, task)
    end, messages = shared.end_state(orchestrator.environment), orchestrator.get_trajectory()
    assert fast_evaluation.leads_to(messages, end, orchestrator.trajectory, solo=False)
    first_result = next(index for index, message in enumerate(messages) if message.role == "tool")
    messages.insert(0, messages.pop(first_result))
    assert not fast_evaluation.leads_to(messages, end, orchestrator.trajectory, solo=False)


def test_gold_actions_of_a_changed_task_are_played_anew():
    shared, task = domain.get("retail"), tasks.get(episodes.task("retail", 1))
    idle = task.model_copy(deep=True)
    idle.evaluation_criteria.actions = []
    assert fast_evaluation.gold_hashes(shared, task) != fast_evaluation.gold_hashes(shared, idle)
    assert fast_evaluation.gold_hashes(shared, idle) == shared.end_state(shared.environment()).hashes


@pytest.fixture
def data(monkeypatch, tmp_path):
    """A file that stands for the mock domain's data."""
    path = tmp_path / "db.json"
    path.write_text("{}")
    monkeypatch.setattr(domain.get("mock"), "files", SourceFiles([path]))
    return path


def test_no_episode_starts_on_data_that_changed_under_the_service(data):
    assert episodes.run("mock", 0).reward == 1.0
    data.write_text('{"tasks": {}}')
    with pytest.raises(
        RolloutError, match=r"db.json changed while the service was running.*[Ss]tart the service again"
    ):
        episodes.run("mock", 0)


@pytest.mark.parametrize("mode", ["fast", "official"])
def test_an_episode_that_began_before_the_data_changed_is_scored_on_what_it_was_played_on_or_not_at_all(data, mode):
    class Saboteur(episodes.LocalPolicy):
        async def generate(self, *args, **kwargs):
            data.write_text('{"tasks": {}}')
            return await super().generate(*args, **kwargs)

    config = episodes.settings(evaluation__mode=mode)
    runner = episodes.runner(config, Saboteur(config))
    request = episodes.request(episodes.task("mock", 0))
    if mode == "fast":
        assert runner.run(request).reward == 1.0
    else:
        with pytest.raises(Tau2Error, match="changed while the service was running"):
            runner.run(request)


def test_an_actor_on_other_data_than_the_first_is_refused():
    check_same_data({"retail": "a", "mock": "b"}, {"retail": "a", "mock": "b"})
    with pytest.raises(Tau2Error, match=r"data files of mock are not the same in all environment actors.*every node"):
        check_same_data({"retail": "a", "mock": "b"}, {"retail": "a", "mock": "c"})
