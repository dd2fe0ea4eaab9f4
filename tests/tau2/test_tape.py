"""Episodes recorded with real τ², real litellm and a real server, and replayed after the server is gone."""

from __future__ import annotations

import copy
import functools
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import rollout_service.preflight as preflight
from rollout_service.config.price import Price
from rollout_service.errors import ConfigError, EpisodeFault, TapeError
from rollout_service.pacing.endpoints import Side
from rollout_service.pacing.gate import Gate, Patience, Place
from rollout_service.record.trajectory import Outcome, TaskRef, Trajectory, UserUsage
from rollout_service.tape.episode import EpisodeTape
from rollout_service.tape.folder import TapeFolder
from rollout_service.tape.recording import Take
from rollout_service.tau2 import compat, evaluation, grader, lazy_llm_utils, llm_user, tasks
from rollout_service.tau2.deadline import Deadline
from rollout_service.tau2.model_calls import ModelCalls
from tests.support import episodes
from tests.support import openai_server as server
from tests.support.openai_server import Exchange, OpenAIServer, always
from tests.support.trajectories import without_times
from tests.support.user_tasks import JUDGED, RETAIL, TELECOM

KEY = "correct-horse-battery-staple"
PRICED_MODEL = "openai/gpt-4.1-mini"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (llm_user, grader):
        monkeypatch.setattr(module, "_FIRST_WAIT", 0.02)
    monkeypatch.setenv("SOME_KEY", KEY)


@functools.cache
def policy() -> episodes.LocalPolicy:
    return episodes.LocalPolicy(episodes.settings())


def play(
    tape: Path,
    mode: str,
    url: str,
    task: TaskRef,
    policy: Any,
    samples: int,
    gates: dict[Side, Gate] | None = None,
    **others: Any,
) -> list[Trajectory]:
    overrides = {
        "user__model": PRICED_MODEL,
        "user__base_url": url,
        "user__api_key_var": "SOME_KEY",
        "tasks__domain": task.domain,
        "tasks__ids": [task.task_id],
        "tape__path": str(tape),
        "tape__mode": mode,
        **others,
    }
    runner = episodes.runner(episodes.settings(**overrides), policy, gates)
    return [runner.run(episodes.request(task, seed=5 + sample, sample=sample)) for sample in range(samples)]


def variations(exchange: Exchange) -> Any:
    """Answers that no two requests get alike, with ids of calls that are drawn anew each time."""
    reply = exchange.reply()
    for call in reply.get("tool_calls") or []:
        call["id"] = f"call_{exchange.request.number}"
    if reply.get("content") and reply["content"] not in compat.STOP_SIGNALS:
        reply["content"] += f" (as I said in request {exchange.request.number})"
    return reply


async def varied(exchange: Exchange) -> web.StreamResponse:
    return web.json_response(exchange.completion(variations(exchange)))


BAD = {1: server.failing(500), 3: server.empty, 4: server.malformed_tool_call, 6: server.failing(429)}


@pytest.mark.parametrize("task", [RETAIL, TELECOM], ids=lambda task: task.domain)
def test_a_replay_without_a_server_or_key_is_equal_but_for_times(
    task: TaskRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OpenAIServer(server.gold_user([tasks.get(task)]), lambda request: BAD.get(request.number, varied)) as api:
        recorded = play(tmp_path / "tape", "record", api.base_url, task, policy(), 2)
    assert [(each.outcome, each.reward) for each in recorded] == [(Outcome.COMPLETED, 1.0)] * 2
    failed = sum(each.user_usage.failed_requests for each in recorded)
    assert failed == sum(number < len(api.requests) for number in BAD) >= 2
    monkeypatch.delenv("SOME_KEY")
    replayed = play(tmp_path / "tape", "replay", api.base_url, task, policy(), 2)
    assert [without_times(each) for each in replayed] == [without_times(each) for each in recorded]
    assert recorded[0].user_usage.cost_usd
    assert recorded[0].messages != recorded[1].messages
    stored = "".join(path.read_text() for path in (tmp_path / "tape").rglob("*.json*"))
    assert KEY not in stored
    assert api.base_url not in stored
    assert "Authorization" not in stored


def test_a_policy_that_differs_in_one_word_gets_a_named_miss_that_is_final(tmp_path: Path) -> None:
    talk = functools.partial(play, tmp_path / "tape", task=RETAIL, samples=1)
    with OpenAIServer(server.talker(3)) as api:
        talk("record", api.base_url, policy=episodes.WrittenTurns("Good morning.", "I found your order."))
        asked = len(api.requests)
        (missed,) = talk("replay", api.base_url, policy=episodes.WrittenTurns("Good morning.", "I found an order."))
        assert len(api.requests) == asked, "a replay asks nobody"
    assert (missed.outcome, missed.reward) == (Outcome.ABORTED, None)
    assert missed.fault is not None
    assert (missed.fault.kind, missed.fault.error, missed.fault.retryable) == ("service", "NotOnTape", False)
    assert missed.fault.message.endswith(
        'message 5 (user), content: recorded "I found your order.", asked "I found an order."'
    )


def test_what_the_tape_lacks_is_asked_and_recorded(tmp_path: Path) -> None:
    talk = functools.partial(play, tmp_path / "tape", task=RETAIL, samples=1)
    with OpenAIServer(server.talker(3)) as api:
        talk("record", api.base_url, policy=episodes.WrittenTurns("Good morning.", "I found your order."))
        asked = len(api.requests)
        other = episodes.WrittenTurns("Good morning.", "I found an order.")
        (first,) = talk("replay_or_record", api.base_url, policy=other)
        assert 0 < len(api.requests) - asked < asked, "only what came after the word that differs"
    (again,) = talk("replay", api.base_url, policy=other)
    assert without_times(again) == without_times(first)


class CountingGate(Gate):
    """A gate that counts the places it gave."""

    given = 0

    def place(self, patience: Patience) -> AbstractContextManager[Place]:
        self.given += 1
        return super().place(patience)


def test_only_what_the_tape_lacks_takes_a_place_at_the_gate(tmp_path: Path) -> None:
    gate = CountingGate(1, 60.0, 600.0)
    talk = functools.partial(play, tmp_path / "tape", task=RETAIL, samples=1, gates={"user": gate})
    with OpenAIServer(server.talker(3)) as api:
        (first,) = talk("record", api.base_url, policy=episodes.WrittenTurns("Good morning.", "I found your order."))
        asked = len(api.requests)
        assert gate.given == asked
        with gate.place(Deadline(120.0)):  # the only one
            same = episodes.WrittenTurns("Good morning.", "I found your order.")
            (again,) = talk("replay_or_record", api.base_url, policy=same, limits__wall_seconds=60.0)
        assert without_times(again) == without_times(first)
        assert gate.given == asked + 1, "the test's own"
        talk("replay_or_record", api.base_url, policy=episodes.WrittenTurns("Good morning.", "I found an order."))
        assert gate.given == len(api.requests) + 1


def test_a_judge_is_recorded_asked_again_alone_and_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = compat.evaluator_nl_assertions
    for name in ("DEFAULT_LLM_NL_ASSERTIONS", "DEFAULT_LLM_NL_ASSERTIONS_ARGS", "generate"):
        monkeypatch.setattr(module, name, getattr(module, name))
    failing = {0: server.failing(503), 1: server.cut_json, 2: server.empty}

    def judged(mode: str) -> Trajectory:
        settings = episodes.settings(
            evaluation__type="all_with_nl_assertions",
            evaluation__judge__model=PRICED_MODEL,
            evaluation__judge__base_url=api.base_url,
            evaluation__judge__api_key_var="SOME_KEY",
            tape__path=str(tmp_path / "tape"),
            tape__mode=mode,
        )
        return episodes.runner(settings, policy()).run(episodes.request(JUDGED, seed=1))

    with OpenAIServer(server.judge(), lambda request: failing.get(request.number, server.ok)) as api:
        recorded = judged("record")
    assert (recorded.reward, recorded.fault) == (1.0, None)
    usage = recorded.judge_usage
    assert usage is not None
    assert (usage.requests, usage.failed_requests, len(api.requests)) == (4, 3, 4)
    reported = [request.usage for request in api.requests if request.usage][1:]  # the first never arrived whole
    assert usage.prompt_tokens == sum(each["prompt_tokens"] for each in reported) > 0
    assert usage.cost_usd
    assert recorded.cost_usd == pytest.approx(usage.cost_usd)
    assert without_times(judged("replay")) == without_times(recorded)


def test_a_tape_of_other_settings_is_refused_before_any_episode(tmp_path: Path) -> None:
    with OpenAIServer(server.talker(1), always(server.ok)) as api:
        play(tmp_path / "tape", "record", api.base_url, RETAIL, policy(), 1)
        settings = {
            "user__model": PRICED_MODEL,
            "user__base_url": api.base_url,
            "tape__path": str(tmp_path / "tape"),
        }
        for mode in ("record", "replay"):
            with pytest.raises(TapeError, match=r"recorded with user .*0\.0.* and this service has .*0\.7"):
                preflight.check(episodes.settings(**settings, tape__mode=mode, user__temperature=0.7), here=True)
        preflight.check(episodes.settings(**settings, tape__mode="record"), here=True)
        none = settings | {"tape__path": str(tmp_path / "none")}
        with pytest.raises(TapeError, match="there is no tape at"):
            preflight.check(episodes.settings(**none, tape__mode="replay"), here=True)
    preflight.check(episodes.settings(**settings, tape__mode="replay"), here=True)  # the server is gone
    [task_file] = (tmp_path / "tape").rglob("task.json")
    older = task_file.parent.with_name(task_file.parent.name[:-16] + "0" * 16)
    task_file.parent.rename(older)
    stored = (older / "task.json").read_text()
    (older / "task.json").write_text(stored.replace('"reason_for_call": "', '"reason_for_call": "!'))
    with pytest.raises(TapeError, match=r"task '0' of retail in another version: user_scenario\.instructions\.reason"):
        preflight.check(episodes.settings(**settings, tape__mode="replay"), here=True)


def test_a_model_that_is_asked_past_the_tape_is_counted_without_one_and_refused_with_one(tmp_path: Path) -> None:
    def otherwise() -> Any:
        usage = {"prompt_tokens": 1_000_000, "completion_tokens": 100_000}
        return compat.UserMessage(role="user", content="hello", usage=usage, cost=0.0), None

    usage, price = UserUsage(), Price(prompt_usd=1.0, completion_usd=5.0)
    ModelCalls("user", Deadline(60.0), usage, price=price).ask(otherwise, 30.0)
    assert usage == UserUsage(1_000_000, 100_000, 1.5, 1)
    tape = EpisodeTape(TapeFolder(tmp_path), "replay", Take("retail", "0", "", 0, 7, 1), dict)
    with pytest.raises(EpisodeFault, match="by a way that the tape does not see"):
        ModelCalls("user", Deadline(60.0), usage, tape=tape).ask(otherwise, 30.0)


def test_a_request_is_recorded_as_it_was_although_litellm_changes_tools_for_some_providers(tmp_path: Path) -> None:
    parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    folder, take = TapeFolder(tmp_path), Take("retail", "0", "", 0, 7, 1)
    with OpenAIServer(server.talker(1)) as api:
        arguments = {
            "model": "hosted_vllm/m",
            "messages": [{"role": "user", "content": "hi"}],
            "tools": copy.deepcopy(tools),
            "api_base": api.base_url,
            "api_key": "none",
            "_skip_mcp_handler": True,
        }
        calls = ModelCalls("user", Deadline(60.0), UserUsage(), tape=EpisodeTape(folder, "record", take, dict))
        calls.ask(lambda: lazy_llm_utils.load().completion(**arguments), 30.0)
    (recording,) = folder.recordings(take)
    assert [entry.request.tools for entry in recording.entries] == [tools]


def test_an_episode_whose_end_cannot_be_recorded_has_no_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score = evaluation.score

    def scored(*args: Any, **others: Any) -> evaluation.Score:
        shutil.rmtree(tmp_path / "tape")
        return score(*args, **others)

    monkeypatch.setattr(evaluation, "score", scored)
    with OpenAIServer(server.gold_user([tasks.get(RETAIL)])) as api:
        (lost,) = play(tmp_path / "tape", "record", api.base_url, RETAIL, policy(), 1)
    assert lost.fault is not None
    assert (lost.fault.kind, lost.fault.error) == ("service", "FileNotFoundError")
    assert (lost.outcome, lost.reward, lost.reward_info) == (Outcome.ABORTED, None, None)


def test_tokens_that_the_api_does_not_report_cost_nobody_knows_what() -> None:
    price = Price(prompt_usd=1.0, completion_usd=5.0)
    assert price.of(0, 0) is None
    assert Price(prompt_usd=0.0, completion_usd=0.0).of(0, 0) == 0.0

    async def uncounted(exchange: Exchange) -> web.StreamResponse:
        answer = exchange.completion(exchange.reply())
        del answer["usage"]
        return web.json_response(answer)

    usage = UserUsage()
    arguments = {"model": "openai/own", "messages": [{"role": "user", "content": "hi"}], "api_key": "none"}
    with OpenAIServer(server.talker(1), always(uncounted)) as api:
        request = functools.partial(lazy_llm_utils.load().completion, **arguments, base_url=api.base_url)
        ModelCalls("user", Deadline(60.0), usage, price=price).ask(request, 30.0)
    assert (usage.requests, usage.cost_usd) == (1, None)


def test_a_tape_that_nothing_would_be_recorded_on_is_refused(tmp_path: Path) -> None:
    tape = {"tape__path": str(tmp_path / "tape"), "tape__mode": "record"}
    with pytest.raises(ConfigError, match=r"tape\.mode is record, but no model plays the user .*Set user\.model"):
        preflight.check(episodes.settings(tasks__domain="telecom", **tape), here=True)
    judged = {"tasks__domain": JUDGED.domain, "tasks__ids": [JUDGED.task_id]}
    preflight.check(episodes.settings(evaluation__type="all_with_nl_assertions", **judged, **tape), here=True)


def test_a_budget_in_dollars_needs_the_judge_s_price_where_a_task_has_a_judge() -> None:
    user = {"user__model": PRICED_MODEL, "budget__usd": 1.0}
    judge = {"evaluation__type": "all_with_nl_assertions", "evaluation__judge__model": "openai/no-such-model"}
    config = episodes.settings(tasks__domain="mock", **user, **judge)
    with pytest.raises(ConfigError, match=r"no price for evaluation\.judge\.model .*Set evaluation\.judge\.price"):
        preflight.check_price(config, config.budget)
    for changed in (
        {"evaluation__judge__price": {"prompt_usd": 1.0, "completion_usd": 1.0}},
        {"evaluation__type": "env", "evaluation__judge__model": None},
    ):
        known = episodes.settings(tasks__domain="mock", **user, **(judge | changed))
        preflight.check_price(known, known.budget)
