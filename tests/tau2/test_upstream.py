"""The part of the tests that runs on upstream τ²-bench (`sierra-research/tau2-bench`).

`TAU2_UPSTREAM_PYTHON` names a Python 3.12 or 3.13 in which it is installed beside what the service needs (extra
`knowledge` for the searches). The tests below then run there, in a process of its own. Without it they are skipped.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rollout_service import preflight
from rollout_service.audit.task_audit import audit_task
from rollout_service.audit.verify import verify
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.config.tasks import OFFLINE
from rollout_service.record import storage
from rollout_service.record.statistics import summarize
from rollout_service.tau2 import compat, domain, grader, tasks
from rollout_service.tau2.deadline import Deadline
from rollout_service.tau2.task_choice import TaskChoice
from tests.support import episodes
from tests.support import openai_server as server
from tests.support.openai_server import OpenAIServer, always
from tests.support.trajectories import as_text, without_times

PYTHON = os.environ.get("TAU2_UPSTREAM_PYTHON")
on_upstream = pytest.mark.skipif(
    not compat.UPSTREAM, reason="needs upstream τ²-bench: set TAU2_UPSTREAM_PYTHON to a Python that has it"
)


@pytest.mark.timeout(900)
@pytest.mark.skipif(compat.UPSTREAM or PYTHON is None, reason="needs TAU2_UPSTREAM_PYTHON, a Python with upstream")
def test_the_tests_of_upstream_pass_in_the_python_that_has_it():
    root = Path(__file__).parents[2]
    files = [str(Path(__file__).relative_to(root)), "tests/export/test_tau2_results.py"]
    command = [str(PYTHON), "-m", "pytest", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@on_upstream
@pytest.mark.parametrize(("name", "count"), [("mock", 10), ("airline", 50), ("retail", 114), ("banking_knowledge", 97)])
def test_upstream_s_domains_have_their_tasks(name, count):
    assert len(tasks.references(name)) == count


@on_upstream
@pytest.mark.parametrize("name", ["mock", "airline", "telecom", "banking_knowledge"])
def test_the_gold_actions_score_1_and_the_trajectory_passes_the_audit(name):
    trajectory = episodes.run(name, 1)
    assert (trajectory.outcome, trajectory.reward, trajectory.fault) == ("completed", 1.0, None)
    assert trajectory.provenance.retrieval == ({"variant": "bm25_grep", "top_k": None} if "bank" in name else {})
    assert trajectory.provenance.task_hash == tasks.hash_of(trajectory.task)
    actions = tasks.get(trajectory.task).evaluation_criteria.actions
    wanted = [at for at, action in enumerate(actions) if action.requestor == "assistant"]
    assert sorted(at for turn in trajectory.turns for at in turn.facts.gold_actions) == wanted
    [(_, violations)] = verify([trajectory])
    assert violations == []


@on_upstream
@pytest.mark.parametrize("retrieval", OFFLINE)
def test_each_offline_search_gives_the_agent_its_tools_and_its_prompt(retrieval):
    chosen = episodes.settings(tasks__retrieval=retrieval).tasks.searched
    shared, task = domain.get("banking_knowledge", chosen), tasks.get(tasks.references("banking_knowledge")[0])
    names = {schema["function"]["name"] for schema in shared.tool_schemas(False)}
    assert ("KB_search" in names, "grep" in names) == ("bm25" in retrieval, "grep" in retrieval)
    policy = shared.environment(task=task).get_policy()
    assert ("Gold Rewards Card" in policy) == (retrieval in ("full_kb", "golden_retrieval"))


@on_upstream
def test_a_search_does_not_change_what_an_episode_scores():
    written = episodes.written("KB_search", query="cash back")
    config = episodes.settings(limits__max_turns=2)
    trajectory = episodes.runner(config, episodes.WrittenTurns(written, "Goodbye.")).run(
        episodes.request(episodes.task("banking_knowledge"))
    )
    assert any(message["role"] == "tool" and not message.get("error") for message in trajectory.messages)
    [(_, violations)] = verify([trajectory])
    assert violations == []


@on_upstream
def test_a_task_of_the_new_domain_is_audited():
    found = audit_task(tasks.references("banking_knowledge")[0])
    assert (found.writes, found.binds, found.nothing, found.gold) == (True, ["DB"], 0, 1)


@on_upstream
def test_the_judge_s_part_of_a_retail_task_is_left_out_of_its_audit():
    found = audit_task(tasks.references("retail")[0])
    assert (found.judged, found.gold, found.problem) == (True, 1, "")


@on_upstream
def test_retail_is_left_with_the_tasks_that_no_judge_scores_and_says_so():
    config = episodes.settings()
    assert [task.task_id for task in preflight.check_tasks(config)] == ["33", "34"]
    [said] = TaskChoice(config).words()
    assert said.startswith("112 tasks are left out of retail: a judge takes part in its reward, and none is named.")
    assert len(preflight.check_tasks(episodes.settings(evaluation__judge__model="openai/m"))) == 114


# τ²'s own review of the user -----------------------------------------------------------------------------------------

HELPED = {"turn_idx": 2, "error_tags": ["hallucination", "made up"], "severity": "critical_helped"}


def reviewed(
    brain: server.Brain, schedule: server.Schedule = server.CLEAN, clock: Deadline | None = None, **settings: Any
) -> tuple[Any, Any]:
    """An episode whose user is reviewed, and the requests of the reviewer. The user has tools of its own."""
    task = episodes.task("telecom", 26)
    priced = {"prompt_usd": 1.0, "completion_usd": 2.0}
    with OpenAIServer(server.gold_user([tasks.get(task)])) as user, OpenAIServer(brain, schedule) as api:
        config = episodes.settings(
            user__model="openai/some-user",
            user__base_url=user.base_url,
            user__price=priced,
            **{"user__review__share": 1.0, "user__review__base_url": api.base_url} | settings,
            user__review__model="openai/some-reviewer",
            user__review__price=priced,
        )
        return episodes.runner(config).run(episodes.request(task), clock), api.requests


@on_upstream
def test_a_reviewed_user_s_errors_are_kept_counted_and_stored_and_change_no_reward(tmp_path):
    trajectory, [request] = reviewed(server.reviewer(HELPED, {"error_tags": [], "severity": "minor"}))
    made = trajectory.user_review
    assert (trajectory.reward, trajectory.outcome, made.problem) == (1.0, "completed", "")
    assert made.found == ["hallucination", "other", "critical_helped", "minor"]
    assert (made.review["critical_user_error"], made.review["errors"][0]["severity"]) == (True, "critical_helped")
    assert request.body["model"] == "some-reviewer"
    assert str(tasks.get(trajectory.task).user_scenario) in request.body["messages"][1]["content"]
    tokens = made.usage.prompt_tokens, made.usage.completion_tokens
    assert tokens == (request.usage["prompt_tokens"], request.usage["completion_tokens"])
    assert made.usage.cost_usd == pytest.approx((tokens[0] + 2 * tokens[1]) / 1e6) == made.review["cost"]
    assert trajectory.cost_usd == pytest.approx(trajectory.user_usage.cost_usd + made.usage.cost_usd)
    assert list(verify([trajectory])) == [(trajectory, [])]
    for ending in ("jsonl", "parquet"):
        storage.write(tmp_path / f"x.{ending}", [trajectory])
        [read] = storage.read(tmp_path / f"x.{ending}")
        assert as_text(read) == as_text(trajectory)
    summary = summarize([trajectory]).to_dict()
    assert summary["user_reviews"]["flaws"]["critical_helped"]["episodes"] == 1


@on_upstream
def test_a_reviewer_that_answers_nonsense_is_asked_again(monkeypatch):
    monkeypatch.setattr(grader, "_FIRST_WAIT", 0.02)
    bad = {0: server.empty, 1: server.failing(503), 2: server.cut_json}
    trajectory, requests = reviewed(server.reviewer(), lambda request: bad.get(request.number, server.ok))
    assert (trajectory.user_review.found, trajectory.user_review.review["user_error"]) == ([], False)
    assert (len(requests), trajectory.user_review.usage.failed_requests) == (4, 3)


@on_upstream
def test_a_review_that_fails_is_noted_and_the_episode_keeps_its_reward(monkeypatch):
    monkeypatch.setattr(grader, "_FIRST_WAIT", 0.02)
    trajectory, requests = reviewed(server.reviewer(), always(server.failing(500)), user__review__retries=1)
    made = trajectory.user_review
    assert (trajectory.reward, trajectory.fault, made.review, made.found) == (1.0, None, None, None)
    assert "InternalServerError" in made.problem
    assert len(requests) == made.usage.failed_requests == 2
    assert summarize([trajectory]).failed_reviews == 1
    assert EpisodeSummary.of(trajectory).review_failed
    assert list(verify([trajectory])) == [(trajectory, [])]


@on_upstream
@pytest.mark.parametrize("ended", ["wall_time", "cancelled"])
def test_a_review_that_the_time_does_not_suffice_for_is_noted_and_only_a_cancelled_episode_is_lost(ended):
    clock = Deadline(600.0)

    async def end(exchange: server.Exchange) -> Any:
        if ended == "cancelled":
            clock.cancelled.set()
        else:
            clock._deadline = 0.0
        return await server.hang(exchange)

    trajectory, _ = reviewed(server.reviewer(), always(end), clock)
    if ended == "cancelled":
        assert (trajectory.outcome, trajectory.reward, trajectory.user_review) == ("aborted", None, None)
    else:
        assert (trajectory.outcome, trajectory.reward, trajectory.user_review.review) == ("completed", 1.0, None)
        assert "limits.wall_seconds" in trajectory.user_review.problem


@on_upstream
def test_a_review_is_recorded_and_replayed_without_a_server(tmp_path):
    tape = {"tape__path": str(tmp_path / "tape"), "user__review__base_url": None}
    recorded, _ = reviewed(server.reviewer(HELPED), tape__mode="record", tape__path=tape["tape__path"])
    replayed, requests = reviewed(server.reviewer(), tape__mode="replay", **tape)
    assert requests == []
    assert without_times(replayed) == without_times(recorded)
