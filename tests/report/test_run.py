"""A run's numbers are those of its episodes, and files that do not belong together are refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.errors import ConfigError, Fault, FaultKind, StorageError
from rollout_service.record import storage
from rollout_service.record.trajectory import Outcome, Provenance, TaskRef, Trajectory, UserReview, UserUsage
from rollout_service.record.writing_lock import writing_lock
from rollout_service.report.comparison import Comparison
from rollout_service.report.run import Run
from tests.support.trajectories import make_segment, make_trajectory

CALL = {"role": "assistant", "tool_calls": [{"id": "c", "name": "pay", "arguments": {"sum": 2}}]}
INFO = {
    "db_check": {"db_match": False},
    "action_checks": [{"action": {"name": "pay", "arguments": {"sum": 1}}, "action_match": False}],
    "communicate_checks": [{"info": "12", "met": True}, {"info": "7", "met": False}],
}
FAULT = Fault(FaultKind.POLICY, "Timeout", "no answer", retryable=True)


def episode(task: int, sample: int, reward: float | None = 1.0, **fields: object) -> Trajectory:
    fields = {"task": TaskRef("retail", "test", str(task), task), "sample_index": sample} | fields
    return make_trajectory(trajectory_id=f"{task}-{sample}", reward=reward, **fields)


def aborted(task: int, sample: int) -> Trajectory:
    return episode(
        task, sample, None, outcome=Outcome.ABORTED, termination_reason="fault", fault=FAULT, provenance=Provenance(),
        segments=[], messages=[], reward_info=None,
    )  # fmt: skip


def stored(path, *trajectories: Trajectory):
    storage.write(path, trajectories)
    return path


def test_every_number_is_that_of_the_episodes(tmp_path):
    answer = {"role": "tool", "id": "c", "requestor": "assistant", "error": True, "content": "no"}
    wrong = episode(1, 0, 0.0, messages=[CALL, answer], reward_info=INFO, segments=[make_segment(1)])
    run = Run.of([stored(tmp_path / "a.jsonl", episode(0, 0), wrong), stored(tmp_path / "b.parquet", aborted(1, 1))])
    total = json.loads(json.dumps(run.to_dict()))["total"]
    assert (total["episodes"], total["scored"], total["solved"], total["mean_reward"]) == (3, 2, 1, 0.5)
    assert total["outcomes"] == {"completed": 2, "aborted": 1}
    assert (total["calls"]["refused"], total["calls"]["valid"]) == (1, 0)
    assert (total["gold_actions"]["wanted"], total["gold_actions"]["wrong_arguments"]) == (1, 1)
    assert total["communicated"] == {"met": 1, "of": 2, "rate": 0.5}
    assert total["database"] == {"met": 1, "of": 2, "rate": 0.5}
    assert (total["turns"], total["user_tokens"], total["user_requests"]) == (3, 360, 6)
    assert run.evaluation.fewer == {}
    assert [(rate.k, rate.value, rate.tasks) for rate in run.evaluation.pass_rates] == [(1, 0.5, 2)]
    assert run.evaluation.to_dict()["faults"]["policy"]["episodes"] == 1
    assert {task: numbers.episodes for task, numbers in run.tasks.items()} == {"retail/test/0": 1, "retail/test/1": 2}


def test_the_user_simulator_s_faults_are_counted_over_the_episodes_that_were_looked_at():
    reviewed = episode(0, 0, user_review=UserReview("m", {"errors": [{"severity": "minor"}]}))
    clean = episode(0, 1, user_review=UserReview("m", {"errors": []}), user_usage=UserUsage(failed_requests=2))
    total = Run([reviewed, clean, episode(0, 2, user_flaws={"empty_answer": [1]})]).to_dict()["total"]
    assert (total["user_reviews"]["episodes"], total["user_reviews"]["flaws"]["any"]["episodes"]) == (2, 1)
    assert total["user_reviews"]["flaws"]["minor"]["episodes"] == 1
    assert total["user_flaws"]["flaws"]["empty_answer"]["episodes"] == 1
    assert total["user_failed_requests"] == 2


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_the_tasks_and_domains_add_up_to_the_total(plan):
    run = Run(episode(task, at, float(won)) for at, (task, won) in enumerate(plan))
    for part in (run.tasks, run.domains):
        for name in ("episodes", "scored", "solved", "turns", "policy_tokens", "user_requests"):
            assert sum(getattr(each, name) for each in part.values()) == getattr(run.total, name)
        assert sum((each.calls for each in part.values()), run.total.calls.__class__()) == run.total.calls


def test_the_history_has_rewards_by_version_and_the_staleness_that_the_files_show():
    def version(number: int):
        segment = make_segment(1)
        segment.weight_versions[segment.loss_mask == 1] = number
        return [segment]

    run = Run(
        episode(0, at, reward, segments=version(v)) for at, (v, reward) in enumerate([(0, 0.0), (2, 1.0), (1, 1.0)])
    )
    found = run.history.to_dict()
    assert {name: point["mean_reward"] for name, point in found["weight_versions"].items()} == {
        "0": 0.0,
        "1": 1.0,
        "2": 1.0,
    }
    assert found["staleness"] == {"0": 2, "1": 1}
    assert found["collections"]["collection-0"]["scored"] == 3


def test_episodes_without_a_reward_make_no_pass_rate_and_no_mean():
    run = Run([aborted(0, 0)])
    assert (run.total.mean_reward, run.evaluation.pass_rates, run.evaluation.smallest_difference) == (None, [], None)
    with pytest.raises(ConfigError, match=r"pass\^1 needs 1 trials .* most that a task has is 0"):
        Run([aborted(0, 0)], k=1)


def test_more_trials_than_there_are_cannot_be_asked_for():
    with pytest.raises(ConfigError, match=r"pass\^4 needs 4 trials .* is 1\. Choose k from 1 to 1"):
        Run([episode(0, 0)], k=4)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    first = stored(tmp_path / "a.jsonl", episode(0, 0, provenance=Provenance(tokenizer_fingerprint="one")))
    other = stored(tmp_path / "b.jsonl", episode(0, 1, provenance=Provenance(tokenizer_fingerprint="two")))
    with pytest.raises(StorageError, match=r"b\.jsonl: .*tokenizer_fingerprint 'two', and those before it have 'one'"):
        Run.of([first, other])
    with pytest.raises(StorageError, match="came before"):
        Run.of([first, first])
    changed = [episode(0, at, provenance=Provenance(task_hash=text)) for at, text in enumerate("xy")]
    with pytest.raises(StorageError, match="another version of the task retail/test/0"):
        Run.of([stored(tmp_path / "c.jsonl", *changed)])
    later = tmp_path / "later.jsonl"
    later.write_text(first.read_text().replace('"schema_version":2', '"schema_version":9', 1))
    with pytest.raises(StorageError, match="has schema version 9"):
        Run.of([first, later])


def test_a_condition_that_an_older_release_did_not_record_is_passed_over(tmp_path):
    path = stored(
        tmp_path / "a.jsonl", *(episode(0, n, provenance=Provenance(user=text)) for n, text in enumerate(("", "x", "")))
    )
    assert Run.of([path]).conditions["user"] == "x"


def test_an_episode_that_never_began_belongs_to_any_run(tmp_path):
    played = episode(0, 0, provenance=Provenance(agent="gt", user="model", evaluation="env"))
    run = Run.of([stored(tmp_path / "a.jsonl", played, aborted(1, 0))])
    assert (run.total.episodes, run.conditions["agent"]) == (2, "gt")


def test_a_file_that_is_being_written_or_broke_off_is_refused(tmp_path):
    path = stored(tmp_path / "a.jsonl", episode(0, 0), episode(0, 1))
    with writing_lock(path), pytest.raises(StorageError, match="still writes"):
        Run.of([path])
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(StorageError, match="line 2 is unfinished"):
        Run.of([path])


def test_a_reward_that_is_none_of_tau2_bench_s_is_refused(tmp_path):
    with pytest.raises(StorageError, match=r"trajectory '0-0' has the reward 1\.5"):
        Run.of([stored(tmp_path / "a.jsonl", episode(0, 0, 1.5))])


def test_an_empty_selection_is_refused_and_says_what_there_is(tmp_path):
    path = stored(tmp_path / "a.jsonl", episode(0, 0))
    with pytest.raises(StorageError, match=r"no trajectory of the domain 'airline'.*There are episodes of retail"):
        Run.of([path], domain="airline")
    with pytest.raises(StorageError, match="There is no file to read"):
        Run.of([])
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(StorageError, match="has no trajectory"):
        Run.of([tmp_path / "empty.jsonl"])


def of_rewards(name: str, rewards: dict[int, list[float]], **provenance: str) -> Run:
    made = [
        episode(task, at, reward, provenance=Provenance(**provenance))
        for task, trials in rewards.items()
        for at, reward in enumerate(trials)
    ]
    run = Run(made, name=name)
    run.conditions = {key: value for key, value in dataclasses.asdict(Provenance(**provenance)).items() if value}
    return run


def test_differences_are_taken_within_the_tasks_of_both_runs():
    old = of_rewards("old", {task: [0.0, float(task % 2)] for task in range(12)}, model="a")
    new = of_rewards("new", {task: [1.0, float(task % 2)] for task in range(2, 14)}, model="b")
    found = Comparison(new, old)
    said = {each.what: (each.value, each.tasks) for each in found.differences}
    assert said == {"reward": (0.5, 10), "pass^1": (0.5, 10), "pass^2": (0.5, 10)}
    assert [each.is_significant for each in found.differences] == [False, False, True]  # where all agree: Wilson's
    assert [change.task for change in found.gained] == [f"retail/test/{task}" for task in range(3, 12, 2)]
    assert found.lost == []
    assert [change.task for change in Comparison(old, new).lost] == [change.task for change in found.gained]
    assert (found.left_out, found.other_conditions) == (4, {"model": ("b", "a")})
    assert json.loads(json.dumps(found.to_dict()))["differences"][-1]["significant"] is True


def test_a_run_against_itself_differs_in_nothing():
    one = of_rewards("one", {task: [float(task % 2), 1.0] for task in range(12)})
    found = Comparison(one, one)
    assert [(each.value, each.is_significant) for each in found.differences] == [(0.0, False)] * 3
    assert found.gained == found.lost == []


def test_runs_that_were_scored_differently_or_share_no_task_are_not_compared():
    one = of_rewards("one", {0: [1.0]}, evaluation="all")
    with pytest.raises(StorageError, match=r"one has provenance\.evaluation 'all', and two has 'env'"):
        Comparison(one, of_rewards("two", {0: [1.0]}, evaluation="env"))
    with pytest.raises(StorageError, match="no task in common"):
        Comparison(one, of_rewards("two", {1: [1.0]}, evaluation="all"))
    changed = of_rewards("two", {0: [1.0]}, evaluation="all")
    one.task_hashes, changed.task_hashes = {"retail/test/0": "x"}, {"retail/test/0": "y"}
    with pytest.raises(StorageError, match="different versions of the tasks retail/test/0"):
        Comparison(one, changed)


def test_checks_of_another_form_than_tau2_s_are_refused_with_the_trajectory(tmp_path):
    path = stored(tmp_path / "a.jsonl", episode(0, 0, reward_info={"action_checks": [{"action": {}}]}))
    with pytest.raises(StorageError, match=r"'0-0' has messages or a reward_info that are not τ²-bench's: KeyError"):
        Run.of([path])


def test_fingerprints_that_differ_are_shown(tmp_path):
    made = [dataclasses.replace(Provenance(), tokenizer_fingerprint=letter * 64) for letter in "ab"]
    path = stored(tmp_path / "a.jsonl", *(episode(0, n, provenance=each) for n, each in enumerate(made)))
    with pytest.raises(
        StorageError, match="tokenizer_fingerprint 'bbbbbbbbbbbb', and those before it have 'aaaaaaaaaaaa'"
    ):
        Run.of([path])


def test_a_message_without_a_role_is_refused_with_its_place(tmp_path):
    path = stored(tmp_path / "a.jsonl", episode(0, 0, messages=[{"role": "user", "content": "hi"}, {"content": "?"}]))
    with pytest.raises(StorageError, match=r"'0-0' has messages\[1\] without a role"):
        Run.of([path])
