"""The official LLM user simulator and NL judge over real HTTP: real τ², real litellm, a server that misbehaves."""

from __future__ import annotations

import copy
import functools
import json
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litellm
import pytest
from aiohttp import web
from loguru import logger

from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.collecting.tally import Tally
from rollout_service.config import User
from rollout_service.errors import ConfigError, EpisodeFault, FaultKind, UserSimulatorError
from rollout_service.policy.base import Generation
from rollout_service.record.trajectory import Outcome, TaskRef, Trajectory, UserUsage
from rollout_service.tau2 import compat, domain, grader, llm_user, tasks, users
from rollout_service.tau2.deadline import Deadline
from tests.support import episodes
from tests.support import openai_server as server
from tests.support.openai_server import Exchange, OpenAIServer, Schedule, always, at
from tests.support.user_tasks import JUDGED, RETAIL, TELECOM, TELECOM_TURNS

LOCAL_MODEL = "openai/some-local-model"
PRICED_MODEL = "openai/gpt-4.1-mini"
KEY = "correct-horse-battery-staple"


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (llm_user, grader):
        monkeypatch.setattr(module, "_FIRST_WAIT", 0.02)


@functools.cache
def policy() -> episodes.LocalPolicy:
    return episodes.LocalPolicy(episodes.settings())


def run(
    api: OpenAIServer | None, task: TaskRef = TELECOM, clock: Deadline | None = None, **overrides: Any
) -> Trajectory:
    """One episode: scripted policy, and the API's user, or without an API the scripted one."""
    if api is not None:
        overrides = {"user__model": LOCAL_MODEL, "user__base_url": api.base_url, **overrides}
    runner = episodes.runner(episodes.settings(**overrides), policy())
    return runner.run(episodes.request(task, seed=1), clock)


def gold_server(schedule: Schedule = server.CLEAN, *played: TaskRef) -> OpenAIServer:
    return OpenAIServer(server.gold_user([tasks.get(task) for task in played or (TELECOM,)]), schedule)


@functools.cache
def clean_run() -> Trajectory:
    with gold_server() as api:
        return run(api)


def said(trajectory: Trajectory) -> list[dict[str, Any]]:
    return [{k: v for k, v in message.items() if k != "timestamp"} for message in trajectory.messages]


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


# Clean conversations -------------------------------------------------------------------------------------------------


def test_retail_scores_one_and_usage_is_what_the_api_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    with gold_server(server.CLEAN, RETAIL) as api:
        trajectory = run(api, RETAIL, user__api_key_var="SOME_KEY")
    assert (trajectory.outcome, trajectory.reward, trajectory.fault) == (Outcome.COMPLETED, 1.0, None)
    assert trajectory.provenance.user == LOCAL_MODEL
    reported = [request.usage for request in api.requests]
    usage = trajectory.user_usage
    assert usage.prompt_tokens == sum(entry["prompt_tokens"] for entry in reported if entry) > 0
    assert usage.completion_tokens == sum(entry["completion_tokens"] for entry in reported if entry) > 0
    assert (usage.requests, usage.failed_requests) == (len(api.requests), 0)
    assert usage.cost_usd is None
    assert {request.key for request in api.requests} == {KEY}


def test_telecom_user_calls_its_tools_and_scores_one() -> None:
    trajectory = clean_run()
    assert (trajectory.outcome, trajectory.termination_reason, trajectory.reward) == (
        Outcome.COMPLETED,
        "user_stop",
        1.0,
    )
    called = [call["name"] for m in trajectory.messages if m["role"] == "user" for call in m.get("tool_calls") or []]
    assert called == ["set_network_mode_preference", "disconnect_vpn", "toggle_roaming"]
    assert trajectory.user_usage.requests == TELECOM_TURNS


def test_requests_hold_openai_parameters_only() -> None:
    with gold_server() as api:
        run(api)
    known = {"model", "messages", "tools", "tool_choice", "temperature", "seed"}
    assert {name for request in api.requests for name in request.body} == known


def test_priced_model_has_its_cost() -> None:
    with gold_server() as api:
        trajectory = run(api, user__model=PRICED_MODEL)
    price = litellm.get_model_info(PRICED_MODEL)
    usage = trajectory.user_usage
    expected = (
        usage.prompt_tokens * price["input_cost_per_token"] + usage.completion_tokens * price["output_cost_per_token"]
    )
    assert usage.cost_usd == pytest.approx(expected)
    assert expected > 0


def test_cost_is_unknown_when_the_server_answers_with_a_model_that_has_no_price() -> None:
    async def other_model(exchange: Exchange) -> web.StreamResponse:
        return web.json_response(exchange.completion(exchange.reply()) | {"model": "my-finetune"})

    with gold_server(always(other_model)) as api:
        trajectory = run(api, user__model=PRICED_MODEL)
    assert (trajectory.reward, trajectory.user_usage.cost_usd) == (1.0, None)


# Failures that pass --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [
        server.rate_limited(0.05),
        server.failing(429, {"Retry-After": "soon"}),
        server.failing(408),
        server.failing(409),
        server.failing(500),
        server.failing(503, {"Retry-After": "0"}),
        server.failing(529),
        server.truncated,
        server.cut_json,
        server.web_page,
        server.empty,
        server.malformed_tool_call,
        server.arguments_not_an_object,
        server.refusal,
        server.content_filter,
        server.lone_surrogate,
    ],
    ids=lambda behaviour: behaviour.__name__,
)
def test_failed_requests_leave_no_trace_in_the_conversation(behaviour: server.Behaviour) -> None:
    with gold_server(at({0, 2, 5}, behaviour)) as api:
        trajectory = run(api)
    assert said(trajectory) == said(clean_run())
    assert trajectory.reward == 1.0
    assert trajectory.user_usage.failed_requests == 3
    assert trajectory.user_usage.requests == len(api.requests) == TELECOM_TURNS + 3


@pytest.mark.parametrize("behaviour", [server.hang, server.drip], ids=lambda behaviour: behaviour.__name__)
def test_answer_that_never_ends_is_asked_for_again_after_the_timeout(behaviour: server.Behaviour) -> None:
    with gold_server(at({2}, behaviour)) as api:
        trajectory = run(api, user__timeout_seconds=1.0)
    assert said(trajectory) == said(clean_run())
    # On a busy machine another request may take too long as well, and is repeated like the one that never ends.
    assert trajectory.user_usage.failed_requests == len(api.requests) - TELECOM_TURNS >= 1
    assert api.requests[3].body == api.requests[2].body


def test_retail_survives_several_kinds_of_failure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "rollout_service")
    answers = {0: server.failing(500), 1: server.empty, 2: server.truncated, 4: server.refusal}
    with gold_server(lambda request: answers.get(request.number, server.ok), RETAIL) as api:
        trajectory = run(api, RETAIL)
    assert (trajectory.reward, trajectory.user_usage.failed_requests) == (1.0, 4)
    (line,) = [said for said in caplog.messages if "is asked again" in said]
    assert line.startswith("The user simulator openai/")
    assert "s (request 2 of 6): " in line
    assert "InternalServerError" in line


def test_answers_that_cannot_be_used_still_count_as_consumed() -> None:
    with gold_server(at({1}, server.empty)) as api:
        usage = run(api).user_usage
    assert usage.prompt_tokens == sum(request.usage["prompt_tokens"] for request in api.requests if request.usage)


def test_bad_answer_is_asked_for_with_another_seed_but_a_failure_of_the_server_with_the_same() -> None:
    answers = {1: server.failing(500), 3: server.empty}
    with gold_server(lambda request: answers.get(request.number, server.ok)) as api:
        run(api)
    seeds = [request.body["seed"] for request in api.requests]
    assert seeds[1] == seeds[2]
    assert seeds[3] != seeds[4]


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_waited_for(as_date: bool) -> None:
    with gold_server(at({1}, server.rate_limited(1.0, as_date=as_date))) as api:
        trajectory = run(api)
    assert api.requests[2].arrived - api.requests[1].arrived >= 1.0
    assert trajectory.timing.user_seconds >= 1.0
    assert trajectory.reward == 1.0


def test_retry_after_is_kept_to_the_limit() -> None:
    with gold_server(at({1}, server.rate_limited(3600.0))) as api:
        trajectory = run(api, user__max_retry_wait_seconds=0.3)
    assert 0.3 <= api.requests[2].arrived - api.requests[1].arrived < 60.0, "not the hour that was asked for"
    assert trajectory.reward == 1.0


# Failures that stay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [server.failing(500), server.empty, server.refusal, server.hang, server.drip],
    ids=lambda behaviour: behaviour.__name__,
)
def test_persistent_failure_is_the_user_simulators_fault_and_no_reward(behaviour: server.Behaviour) -> None:
    never_answers = behaviour in (server.hang, server.drip)
    with gold_server(always(behaviour)) as api:
        trajectory = run(api, user__retries=2, user__timeout_seconds=0.3 if never_answers else 60.0)
    assert (trajectory.outcome, trajectory.termination_reason) == (Outcome.ABORTED, "fault")
    assert (trajectory.reward, trajectory.reward_info) == (None, None)
    assert trajectory.fault is not None
    assert (trajectory.fault.kind, trajectory.fault.retryable) == (FaultKind.USER_SIMULATOR, True)
    assert [message["role"] for message in trajectory.messages] == ["assistant"]
    usage = trajectory.user_usage
    assert (usage.requests, usage.failed_requests) == (3, 3)
    assert len(api.requests) == 3 or never_answers, "on a slow machine, one may be given up before it is sent"


def test_refusals_because_of_a_limit_do_not_count_as_attempts() -> None:
    with gold_server(at(range(1, 5), server.rate_limited(0.01))) as api:
        trajectory = run(api, user__retries=0)
    assert said(trajectory) == said(clean_run())
    assert (trajectory.reward, trajectory.user_usage.failed_requests) == (1.0, 4)


def test_an_endpoint_that_refuses_for_too_long_is_the_user_simulators_fault() -> None:
    with gold_server(always(server.rate_limited(0.01))) as api:
        trajectory = run(api, user__retries=50, service__give_up_seconds=0.3)
    assert (trajectory.outcome, trajectory.reward) == (Outcome.ABORTED, None)
    assert trajectory.fault is not None
    assert (trajectory.fault.kind, trajectory.fault.retryable) == (FaultKind.USER_SIMULATOR, True)
    assert "Rate limit" in trajectory.fault.message or "RateLimit" in trajectory.fault.message


def test_answers_that_say_how_much_is_left_slow_the_requests_down() -> None:
    async def frugal(exchange: Exchange) -> web.StreamResponse:
        left = {"limit": "100", "remaining": "0", "reset": "500ms"}
        headers = {f"x-ratelimit-{name}-requests": value for name, value in left.items()}
        return web.json_response(exchange.completion(exchange.reply()), headers=headers)

    with gold_server(lambda request: frugal if request.number == 1 else server.ok) as api:
        trajectory = run(api)
    assert api.requests[2].arrived - api.requests[1].arrived >= 0.4, "it waited for the reset"
    assert (trajectory.reward, trajectory.user_usage.failed_requests) == (1.0, 0)


def test_api_that_goes_away_amid_a_conversation_keeps_what_was_said() -> None:
    with gold_server(lambda request: server.ok if request.number < 3 else server.failing(502)) as api:
        trajectory = run(api, user__retries=1)
    assert trajectory.reward is None
    assert len(trajectory.messages) > 3
    assert said(trajectory) == said(clean_run())[: len(trajectory.messages)]


@pytest.mark.parametrize(
    ("behaviour", "retryable"),
    [
        (server.unauthorized, False),
        (server.forbidden, False),
        (server.failing(404), False),
        (server.failing(400), False),
        (server.context_too_long, True),
    ],
    ids=["401", "403", "404", "400", "context window"],
)
def test_request_that_cannot_succeed_is_sent_once(behaviour: server.Behaviour, retryable: bool) -> None:
    with gold_server(always(behaviour)) as api:
        trajectory = run(api)
    assert len(api.requests) == 1
    assert trajectory.reward is None
    assert trajectory.fault is not None
    assert (trajectory.fault.kind, trajectory.fault.retryable) == (FaultKind.USER_SIMULATOR, retryable)


async def refuses_temperature(exchange: Exchange) -> web.StreamResponse:
    if exchange.request.body.get("temperature") in (None, 1):
        return await server.ok(exchange)
    text = "Unsupported value: 'temperature' does not support 0.0 with this model."
    return exchange.error(400, text, "unsupported_value")


def test_a_model_that_refuses_the_temperature_is_told_with_the_setting_that_helps() -> None:
    with gold_server(always(refuses_temperature)) as api:
        refused, taken = run(api), run(api, user__temperature=None)
    assert refused.fault is not None
    assert "(your key is none). Set user.temperature: null" in refused.fault.message
    assert (refused.fault.retryable, refused.user_usage.requests) == (False, 1)
    assert (taken.fault, taken.reward) == (None, 1.0)


@pytest.mark.parametrize("model", ["openai/gpt-5-mini", "openai/o3-mini", "azure/gpt-5"])
def test_a_model_that_is_known_to_refuse_the_temperature_is_refused_before_anything_starts(model: str) -> None:
    with pytest.raises(ConfigError, match=rf"user\.temperature is 0, and {model} .*user\.temperature: null"):
        llm_user.check_user(User(model=model))
    llm_user.check_user(User(model=model, temperature=None))
    llm_user.check_user(User(model=model, temperature=1.0))


@pytest.mark.parametrize(
    "model", [LOCAL_MODEL, PRICED_MODEL, "anthropic/claude-3-5-haiku-latest", "no-such-provider/x"]
)
def test_a_model_that_takes_the_temperature_or_is_not_known_passes(model: str) -> None:
    llm_user.check_user(User(model=model))


def test_missing_library_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> Any:
        raise ModuleNotFoundError("No module named 'boto3'")

    monkeypatch.setattr("tau2.user.user_simulator.generate", missing)
    with gold_server() as api:
        trajectory = run(api)
    assert trajectory.fault is not None
    assert (trajectory.fault.retryable, trajectory.user_usage.requests) == (False, 1)
    assert "boto3" in trajectory.fault.message


# Answers that no user could have given ------------------------------------------------------------------------------


def saying(text: str, finish_reason: str | None = None) -> server.Behaviour:
    async def say(exchange: Exchange) -> web.StreamResponse:
        return web.json_response(exchange.completion({"content": text}, finish_reason))

    return say


async def calls_as_text(exchange: Exchange) -> web.StreamResponse:
    """A server without a tool-call parser."""
    message = exchange.reply()
    if calls := message.pop("tool_calls", None):
        function = calls[0]["function"]
        text = f'{{"name": "{function["name"]}", "arguments": {function["arguments"]}}}'
        message = {"content": f"<tool_call>\n{text}\n</tool_call>"}
    return web.json_response(exchange.completion(message))


def thinking_aloud(before: str, after: str) -> server.Behaviour:
    """A server without a reasoning parser."""

    async def think(exchange: Exchange) -> web.StreamResponse:
        message = exchange.reply()
        text = f"{before}\nSoon.\n{after}\n\n{message.get('content') or ''}"
        return web.json_response(exchange.completion(message | {"content": text}))

    return think


async def silent_after_its_calls(exchange: Exchange) -> web.StreamResponse:
    tools = [message for message in exchange.request.body["messages"] if message["role"] == "tool"]
    return await (server.empty if tools else server.ok)(exchange)


async def silent_until_reminded(exchange: Exchange) -> web.StreamResponse:
    last = exchange.request.body["messages"][-1]["role"]
    return await (server.empty if last == "tool" else server.ok)(exchange)


@pytest.mark.parametrize(
    "behaviour",
    [
        saying('<tool_call>\n{"name": "toggle_data", "arguments": {}}\n</tool_call>'),
        saying('{"name": "toggle_roaming", "parameters": {}}'),
        saying("toggle_roaming()"),
        saying("I should wait.</think>Hello?"),
        saying("<think>Say ###STOP###? No."),
        saying("[THINK]Say ###STOP###?[/THINK]No."),
        saying("<|channel|>final<|message|>Thanks ###STOP###"),
        saying("Then I would like to", "length"),
        saying("Then I would like to", "abort"),
    ],
    ids=[
        "tool call",
        "JSON",
        "pythonic",
        "thought",
        "stop in a thought",
        "stop in a whole one",
        "harmony",
        "cut by length",
        "aborted",
    ],
)
def test_what_no_user_could_have_said_is_asked_for_again_and_leaves_no_trace(behaviour: server.Behaviour) -> None:
    with gold_server(at({0, 2, 5}, behaviour)) as api:
        trajectory = run(api)
    assert said(trajectory) == said(clean_run())
    assert (trajectory.reward, trajectory.user_usage.failed_requests) == (1.0, 3)


@pytest.mark.parametrize(
    ("behaviour", "remedy"),
    [
        (calls_as_text, "--tool-call-parser"),
        (saying("I should ask.</think>Hello?"), "--reasoning-parser"),
        (saying("Then I would like to", "length"), "max_tokens"),
        (saying("Hello?<|im_end|>"), "stop tokens"),
    ],
    ids=["calls as text", "thoughts", "cut by length", "control tokens"],
)
def test_a_server_that_never_gives_a_users_answer_is_the_simulators_fault_with_the_remedy(
    behaviour: server.Behaviour, remedy: str
) -> None:
    with gold_server(always(behaviour)) as api:
        trajectory = run(api, user__retries=1)
    assert (trajectory.outcome, trajectory.reward) == (Outcome.ABORTED, None)
    assert trajectory.fault is not None
    assert (trajectory.fault.kind, trajectory.fault.retryable) == (FaultKind.USER_SIMULATOR, True)
    assert remedy in trajectory.fault.message
    assert not any("tool_call>" in str(m.get("content")) for m in trajectory.messages)


@pytest.mark.parametrize("marks", [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thought>", "</thought>")])
def test_a_server_that_writes_whole_thoughts_before_its_answers_gives_the_same_conversation(
    marks: tuple[str, str],
) -> None:
    with gold_server(always(thinking_aloud(*marks))) as api:
        trajectory = run(api)
    words = [(m["role"], m.get("content"), m.get("tool_calls")) for m in trajectory.messages]
    assert words == [(m["role"], m.get("content"), m.get("tool_calls")) for m in clean_run().messages]
    assert (trajectory.reward, len(api.requests)) == (1.0, TELECOM_TURNS)
    assert not any("Soon." in str(message.get("content")) for message in api.requests[-1].body["messages"])


def test_text_beside_a_stop_signal_is_kept() -> None:
    with gold_server(lambda request: server.ok if request.number == 0 else saying("Thanks, bye! ###STOP###")) as api:
        trajectory = run(api)
    assert (trajectory.termination_reason, trajectory.messages[-1]["content"]) == (
        "user_stop",
        "Thanks, bye! ###STOP###",
    )


def test_a_user_that_is_silent_after_its_own_call_is_reminded() -> None:
    with gold_server(always(silent_until_reminded)) as api:
        trajectory = run(api)
    words = [(m["role"], m.get("content")) for m in trajectory.messages]
    assert words == [(m["role"], m.get("content")) for m in clean_run().messages]
    assert trajectory.reward == 1.0
    reminders = [m for request in api.requests for m in request.body["messages"][1:] if m["role"] == "system"]
    assert len(reminders) == 3, "one for each of its calls, none of which stays in the conversation"


def test_a_user_that_stays_silent_after_its_own_call_is_reminded_once_and_then_at_fault() -> None:
    with gold_server(always(silent_after_its_calls)) as api:
        trajectory = run(api, user__retries=50)
    assert trajectory.fault is not None
    assert (trajectory.fault.kind, trajectory.reward) == (FaultKind.USER_SIMULATOR, None)
    assert "empty answer" in trajectory.fault.message
    assert len(api.requests) == 2 + 3, "the opening, the call, and three tries to have its result answered"
    assert [r.body["messages"][-1]["role"] for r in api.requests[-3:]] == ["tool", "tool", "system"]


def test_a_server_that_refuses_the_reminder_is_at_fault_for_its_silence() -> None:
    async def strict(exchange: Exchange) -> web.StreamResponse:
        last = exchange.request.body["messages"][-1]["role"]
        return await (server.failing(400) if last == "system" else silent_until_reminded)(exchange)

    with gold_server(always(strict)) as api:
        trajectory = run(api)
    assert trajectory.fault is not None
    assert (trajectory.fault.error, trajectory.fault.retryable) == ("EmptyAnswer", True)
    assert len(api.requests) == 2 + 3


# Episodes in which the policy never spoke ----------------------------------------------------------------------------


@pytest.mark.parametrize("signal", compat.STOP_SIGNALS)
def test_a_user_that_ends_before_the_policy_spoke_is_at_fault_and_nothing_is_scored(signal: str) -> None:
    with gold_server(always(saying(f"No, thanks. {signal}"))) as api:
        trajectory = run(api)
    assert (trajectory.outcome, trajectory.termination_reason) == (Outcome.ABORTED, "fault")
    assert (trajectory.reward, trajectory.reward_info, trajectory.turns) == (None, None, [])
    assert trajectory.fault is not None
    assert (trajectory.fault.kind, trajectory.fault.retryable) == (FaultKind.USER_SIMULATOR, True)
    assert signal in trajectory.fault.message
    assert [m["role"] for m in trajectory.messages] == ["assistant", "user"]


def test_a_user_whose_calls_fail_until_the_end_before_the_policy_spoke_is_at_fault() -> None:
    def brain(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> dict[str, Any]:
        function = {"name": "no_such_tool", "arguments": "{}"}
        return {"tool_calls": [{"id": f"call_{len(messages)}", "type": "function", "function": function}]}

    with OpenAIServer(brain) as api:
        trajectory = run(api, limits__max_errors=3)
    assert trajectory.fault is not None
    assert (trajectory.fault.kind, trajectory.reward, trajectory.turns) == (FaultKind.USER_SIMULATOR, None, [])
    assert "too_many_errors" in trajectory.fault.message


def test_a_user_that_stops_after_one_turn_of_the_policy_is_scored() -> None:
    with gold_server(lambda request: saying(compat.STOP) if request.number else server.ok) as api:
        trajectory = run(api)
    assert (trajectory.outcome, trajectory.reward, len(trajectory.turns)) == (Outcome.COMPLETED, 0.0, 1)


# Limits and neighbours -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [server.hang, server.drip], ids=["hang", "drip"])
def test_wall_time_ends_an_episode_that_waits_for_its_user(behaviour: server.Behaviour) -> None:
    start = time.monotonic()
    with gold_server(at({2}, behaviour)) as api:
        trajectory = run(api, limits__wall_seconds=0.7, user__timeout_seconds=300.0)
    assert time.monotonic() - start < 200, "not the 300 s of the request"
    assert (trajectory.outcome, trajectory.termination_reason) == (Outcome.TRUNCATED, "wall_time")
    assert (trajectory.reward, trajectory.fault) == (None, None)


def test_an_episode_whose_time_ends_before_its_user_s_endpoint_takes_a_request_is_tried_again() -> None:
    with gold_server(at({2}, server.rate_limited(300.0))) as api:
        trajectory = run(api, limits__wall_seconds=1.5)
    assert (trajectory.outcome, trajectory.reward) == (Outcome.ABORTED, None)
    assert trajectory.fault is not None
    assert (trajectory.fault.kind, trajectory.fault.retryable) == (FaultKind.USER_SIMULATOR, True)
    assert "limits.wall_seconds" in trajectory.fault.message


def test_an_episode_whose_time_ends_before_a_request_that_failed_is_repeated_is_tried_again() -> None:
    with gold_server(at(set(range(2, 100)), server.failing(503))) as api:
        trajectory = run(api, limits__wall_seconds=3.0, user__retries=100)
    assert (trajectory.outcome, trajectory.reward) == (Outcome.ABORTED, None)
    assert trajectory.fault is not None
    assert (trajectory.fault.kind, trajectory.fault.retryable) == (FaultKind.USER_SIMULATOR, True)
    assert "gave no usable answer" in trajectory.fault.message


def test_cancelling_ends_an_episode_whose_user_hangs() -> None:
    clock = Deadline(600.0)
    start = time.monotonic()
    with gold_server(always(server.hang)) as api, ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(run, api, clock=clock, user__timeout_seconds=300.0)
        while not api.requests:
            assert not hanging.done()
            time.sleep(0.01)
        clock.cancelled.set()
        trajectory = hanging.result()
    assert time.monotonic() - start < 200, "not the 300 s of the request"
    assert (trajectory.outcome, trajectory.termination_reason) == (Outcome.ABORTED, "cancelled")


def test_hanging_user_does_not_stall_its_neighbour() -> None:
    scenario, clock = str(tasks.get(RETAIL).user_scenario), Deadline(120.0)

    def retail_hangs(request: server.Request) -> server.Behaviour:
        return server.hang if scenario in request.body["messages"][0]["content"] else server.ok

    with gold_server(retail_hangs, RETAIL, TELECOM) as api, ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(run, api, RETAIL, clock=clock, user__timeout_seconds=60.0)
        try:
            while not api.requests:
                assert not hanging.done()
                time.sleep(0.01)
            neighbour = run(api, TELECOM, user__timeout_seconds=60.0)
            assert not hanging.done()
        finally:
            clock.cancelled.set()
    assert neighbour.reward == 1.0
    assert hanging.result().reward is None


def test_more_users_wait_at_once_than_an_http_client_has_connections_by_default() -> None:
    count = 105
    task = tasks.get(RETAIL)
    greeting = compat.AssistantMessage(role="assistant", content="Hi! How can I help you today?")
    usages = [UserUsage() for _ in range(count)]
    gather = server.together(count)

    def speak(usage: UserUsage) -> None:
        config = User(model=LOCAL_MODEL, base_url=api.base_url, retries=0, timeout_seconds=20.0)
        user = users.make("llm", task, None, config, 0, usage, Deadline(60.0))
        user.generate_next_message(greeting, user.get_init_state())

    with gold_server(lambda request: gather if request.number else server.ok, RETAIL) as api:
        speak(UserUsage())  # litellm makes its client now, once
        threads = [threading.Thread(target=speak, args=(usage,)) for usage in usages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(api.requests) == count + 1
    assert sum(usage.failed_requests for usage in usages) == 0


# Keys and addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour", [server.unauthorized, server.failing(500)], ids=lambda behaviour: behaviour.__name__
)
def test_key_shows_nowhere_even_when_the_server_repeats_it(
    behaviour: server.Behaviour,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    logged: list[str] = []
    sink = logger.add(logged.append, level=0)
    try:
        with caplog.at_level(logging.DEBUG), gold_server(at({1, 2}, behaviour)) as api:
            trajectory = run(api, user__api_key_var="SOME_KEY", user__retries=1)
    finally:
        logger.remove(sink)
    assert api.requests[-1].key == KEY
    assert trajectory.fault is not None
    assert "your key is [redacted]" in trajectory.fault.message
    assert KEY not in json.dumps(trajectory.to_dict())
    printed = capfd.readouterr()
    assert KEY not in caplog.text + "".join(logged) + printed.out + printed.err


def test_key_is_not_in_the_traceback_of_the_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    task = tasks.get(RETAIL)
    greeting = compat.AssistantMessage(role="assistant", content="Hi! How can I help you today?")
    with gold_server(always(server.unauthorized), RETAIL) as api:
        config = User(model=LOCAL_MODEL, base_url=api.base_url, api_key_var="SOME_KEY")
        user = users.make("llm", task, None, config, 0, UserUsage(), Deadline(60.0))
        with pytest.raises(EpisodeFault) as caught:
            user.generate_next_message(greeting, user.get_init_state())
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_missing_key_variable_is_named_before_anything_is_sent() -> None:
    with gold_server() as api, pytest.raises(ConfigError, match="NO_SUCH_KEY_HERE"):
        run(api, user__api_key_var="NO_SUCH_KEY_HERE")
    assert api.requests == []


def test_own_endpoint_does_not_get_the_key_of_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with gold_server() as api:
        run(api)
    assert KEY not in {request.key for request in api.requests}


@pytest.mark.parametrize("find", [closed_port, lambda: "http://no-such-host.invalid/v1"], ids=["closed", "no host"])
def test_unusable_endpoint_is_refused_with_its_address(find: Callable[[], str]) -> None:
    address = find()
    with pytest.raises(UserSimulatorError) as caught:
        llm_user.check_endpoint(User(model=LOCAL_MODEL, base_url=address))
    assert address in str(caught.value)


def test_address_without_scheme_is_refused_with_its_remedy() -> None:
    with pytest.raises(UserSimulatorError, match="http://host:port/v1"):
        llm_user.check_endpoint(User(model=LOCAL_MODEL, base_url="127.0.0.1:8000/v1"))


def test_endpoint_that_listens_passes_without_a_request() -> None:
    with gold_server() as api:
        llm_user.check_endpoint(User(model=LOCAL_MODEL, base_url=api.base_url))
    assert api.requests == []


@pytest.mark.parametrize("more", [{}, {"extra_body": {"top_k": 3}}], ids=["plain", "with a body of its own"])
def test_an_endpoint_of_one_s_own_gets_the_tools_as_litellm_itself_sends_them(more: dict[str, Any]) -> None:
    tools = [tool.openai_schema for tool in domain.get("telecom").user_tools(tasks.get(TELECOM))]
    with gold_server() as api:
        run(api, TELECOM, user__arguments=more)
        ours = api.requests[0].body
        litellm.completion(
            model=LOCAL_MODEL,
            messages=copy.deepcopy(ours["messages"]),
            tools=tools,
            tool_choice="auto",
            temperature=0.0,
            api_base=api.base_url,
            api_key="none",
            _skip_mcp_handler=True,
            **more,
        )
        plain = api.requests[-1].body
    assert ours["tools"] == tools
    assert {name: value for name, value in ours.items() if name != "seed"} == plain


# The judge of NL assertions ------------------------------------------------------------------------------------------


@pytest.fixture
def judge_settings(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings for a judged episode. τ² keeps its judge in module constants: they are put back afterwards."""
    module = compat.evaluator_nl_assertions
    for name in ("DEFAULT_LLM_NL_ASSERTIONS", "DEFAULT_LLM_NL_ASSERTIONS_ARGS", "generate"):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setenv("JUDGE_KEY", KEY)
    return {
        "evaluation__type": "all_with_nl_assertions",
        "evaluation__judge__model": "openai/some-judge",
        "evaluation__judge__api_key_var": "JUDGE_KEY",
        "evaluation__judge__arguments": {"temperature": 0.0},
        "evaluation__judge__retries": 1,
    }


@pytest.mark.parametrize("verdict", [True, False])
def test_verdict_of_the_judge_is_recorded(judge_settings: dict[str, Any], verdict: bool) -> None:
    with OpenAIServer(server.judge(lambda outcome: verdict)) as api:
        trajectory = run(None, JUDGED, evaluation__judge__base_url=api.base_url, **judge_settings)
    assert trajectory.reward_info is not None
    wanted = tasks.get(JUDGED).evaluation_criteria.nl_assertions
    checks = trajectory.reward_info["nl_assertions"]
    assert [(check["nl_assertion"], check["met"]) for check in checks] == [(text, verdict) for text in wanted]
    assert [(request.body["model"], request.key) for request in api.requests] == [("some-judge", KEY)]


@pytest.mark.parametrize(("verdict", "reward"), [(True, 1.0), (False, 0.0)])
def test_reward_is_the_judges_where_it_alone_scores(
    judge_settings: dict[str, Any], verdict: bool, reward: float
) -> None:
    settings = judge_settings | {"evaluation__type": "nl_assertions"}
    with OpenAIServer(server.judge(lambda outcome: verdict)) as api:
        trajectory = run(None, JUDGED, evaluation__judge__base_url=api.base_url, **settings)
    assert (trajectory.outcome, trajectory.reward) == (Outcome.COMPLETED, reward)


def assert_unscored(trajectory: Trajectory) -> None:
    assert (trajectory.outcome, trajectory.termination_reason) == (Outcome.ABORTED, "fault")
    assert (trajectory.reward, trajectory.reward_info) == (None, None)
    assert trajectory.fault is not None
    assert (trajectory.fault.kind, trajectory.fault.retryable) == (FaultKind.EVALUATOR, True)
    assert compat.STOP in trajectory.messages[-1]["content"]
    assert KEY not in json.dumps(trajectory.to_dict())


def test_judge_that_is_down_leaves_the_episode_unscored(judge_settings: dict[str, Any]) -> None:
    assert_unscored(run(None, JUDGED, evaluation__judge__base_url=closed_port(), **judge_settings))


@pytest.mark.parametrize(
    "behaviour",
    [server.failing(500), server.empty, server.cut_json, server.hang],
    ids=lambda behaviour: behaviour.__name__,
)
def test_judge_that_fails_leaves_the_episode_unscored(
    judge_settings: dict[str, Any], behaviour: server.Behaviour
) -> None:
    judge_settings["evaluation__judge__arguments"] |= {"timeout": 0.3 if behaviour is server.hang else 60.0}
    with OpenAIServer(server.judge(), always(behaviour)) as api:
        assert_unscored(run(None, JUDGED, evaluation__judge__base_url=api.base_url, **judge_settings))


def test_judge_that_refuses_the_key_is_a_final_fault(judge_settings: dict[str, Any]) -> None:
    with OpenAIServer(server.judge(), always(server.unauthorized)) as api:
        trajectory = run(None, JUDGED, evaluation__judge__base_url=api.base_url, **judge_settings)
    assert trajectory.fault is not None
    assert (trajectory.fault.kind, trajectory.fault.error) == (FaultKind.EVALUATOR, "AuthenticationError")
    assert not trajectory.fault.retryable
    assert "evaluate_simulation" in str(trajectory.fault.traceback)
    assert KEY not in json.dumps(trajectory.to_dict())


def test_judge_that_forgets_an_assertion_leaves_the_episode_unscored(judge_settings: dict[str, Any]) -> None:
    with OpenAIServer(server.judge(omit=1)) as api:
        assert_unscored(run(None, JUDGED, evaluation__judge__base_url=api.base_url, **judge_settings))


def test_judge_that_fails_once_is_asked_again(judge_settings: dict[str, Any]) -> None:
    with OpenAIServer(server.judge(), at({0}, server.failing(500))) as api:
        trajectory = run(None, JUDGED, evaluation__judge__base_url=api.base_url, **judge_settings)
    assert (trajectory.reward, len(api.requests)) == (1.0, 2)


def test_a_judge_s_limit_makes_its_requests_wait_and_is_no_failed_attempt(judge_settings: dict[str, Any]) -> None:
    settings = judge_settings | {"evaluation__judge__retries": 0}
    with OpenAIServer(server.judge(), at({0, 1, 2}, server.rate_limited(0.05))) as api:
        trajectory = run(None, JUDGED, evaluation__judge__base_url=api.base_url, **settings)
    assert (trajectory.reward, len(api.requests)) == (1.0, 4)
    assert trajectory.judge_usage is not None
    assert trajectory.judge_usage.failed_requests == 3


@pytest.mark.parametrize("ended", ["cancelled", "out of time"])
def test_an_episode_that_ends_while_its_judge_is_asked_is_not_scored(
    judge_settings: dict[str, Any], ended: str
) -> None:
    clock = Deadline(600.0)

    async def end(exchange: Exchange) -> web.StreamResponse:
        if ended == "cancelled":
            clock.cancelled.set()
        else:
            clock._deadline = 0.0
        return await server.failing(500)(exchange)

    with OpenAIServer(server.judge(), always(end)) as api:
        trajectory = run(None, JUDGED, clock, evaluation__judge__base_url=api.base_url, **judge_settings)
    assert (trajectory.outcome, trajectory.reward) == (Outcome.ABORTED, None)
    assert compat.STOP in trajectory.messages[-1]["content"]
    if ended == "cancelled":
        assert (trajectory.termination_reason, trajectory.fault) == ("cancelled", None)
    else:
        assert trajectory.fault is not None
        assert (trajectory.fault.kind, trajectory.fault.retryable) == (FaultKind.EVALUATOR, True)
        assert "limits.wall_seconds" in trajectory.fault.message


def test_missing_key_variable_of_the_judge_is_named(
    judge_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ConfigError, match="JUDGE_KEY"):
        run(None, JUDGED, **judge_settings)


def test_what_was_wrong_with_the_user_stands_beside_the_reward_and_does_not_change_it() -> None:
    def words(request: server.Request) -> server.Behaviour:
        return {1: saying("(no response)"), 2: saying(compat.STOP)}.get(request.number, server.ok)

    with gold_server(words) as api:
        trajectory = run(api)
    assert trajectory.user_flaws is not None
    (at,) = trajectory.user_flaws["empty_answer"]
    assert trajectory.messages[at]["content"] == "(no response)"
    assert trajectory.reward == 0.0
    assert clean_run().user_flaws is not None
    assert "premature_stop" not in clean_run().user_flaws
    assert trajectory.provenance.user_arguments == {"temperature": 0.0}
    assert run(None).user_flaws is None, "a scripted user is not looked at"
    summary = EpisodeSummary.of(trajectory)
    tally = Tally()
    tally.add_result(summary)
    assert tally.status()["user_flaws"]["flaws"]["empty_answer"]["episodes"] == 1


def test_a_user_that_is_waited_for_holds_no_place_at_the_policy() -> None:
    class Counting(episodes.LocalPolicy):
        active = 0

        async def generate(self, *given: Any) -> Generation:
            self.active += 1
            try:
                return await super().generate(*given)
            finally:
                self.active -= 1

    counting, seen = Counting(episodes.settings()), []

    def schedule(request: server.Request) -> server.Behaviour:
        seen.append(counting.active)
        return server.ok

    with gold_server(schedule) as api:
        config = episodes.settings(user__model=LOCAL_MODEL, user__base_url=api.base_url)
        trajectory = episodes.runner(config, counting).run(episodes.request(TELECOM, seed=1))
    assert (trajectory.reward, seen) == (1.0, [0] * TELECOM_TURNS)
