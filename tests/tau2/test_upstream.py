"""The part of the tests that runs on upstream τ²-bench (`sierra-research/tau2-bench`).

`TAU2_UPSTREAM_PYTHON` names a Python 3.12 or 3.13 in which it is installed beside what the service needs (extra
`knowledge` for the searches). The tests below then run there, in a process of its own. Without it they are skipped.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from rollout_service import preflight
from rollout_service.audit.task_audit import audit_task
from rollout_service.audit.verify import verify
from rollout_service.config.tasks import OFFLINE
from rollout_service.tau2 import compat, domain, tasks
from rollout_service.tau2.task_choice import TaskChoice
from tests.support import episodes

PYTHON = os.environ.get("TAU2_UPSTREAM_PYTHON")
on_upstream = pytest.mark.skipif(
    not compat.UPSTREAM, reason="needs upstream τ²-bench: set TAU2_UPSTREAM_PYTHON to a Python that has it"
)


@pytest.mark.timeout(900)
@pytest.mark.skipif(compat.UPSTREAM or PYTHON is None, reason="needs TAU2_UPSTREAM_PYTHON, a Python with upstream")
def test_the_tests_of_upstream_pass_in_the_python_that_has_it():
    root = Path(__file__).parents[2]
    command = [str(PYTHON), "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__).relative_to(root))]
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
