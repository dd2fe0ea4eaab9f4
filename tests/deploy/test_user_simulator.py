"""A user simulator that the service itself serves: OpenAI's API before an engine, and episodes that it plays in."""

from __future__ import annotations

import json
import os
import re
from datetime import date
from typing import Any

import httpx
import pytest
import transformers
from ray import serve
from starlette.requests import Request

from deploy.chat_api import ChatApi
from deploy.engines.transformers import TransformersEngine
from deploy.user_simulator import _bound
from rollout_service import served_user
from rollout_service.audit.verify import verify
from rollout_service.chat.codec import EMBEDDED_TOKENIZER, ChatCodec
from rollout_service.config import RolloutConfig
from rollout_service.config.user_server import UserServer
from rollout_service.errors import CodecError, ConfigError, ServiceError
from rollout_service.gateway import tokens
from rollout_service.gateway.guard import Guard
from rollout_service.preflight import check
from rollout_service.record.trajectory import UserUsage
from rollout_service.tau2 import domain, tasks
from rollout_service.tau2.deadline import Deadline
from tests.support import family_templates, tiny_model
from tests.support.episodes import settings
from tests.support.services import HTTP_PORT, start

CALL, TEXT = "[CALLS]reboot_device[ID]abcdefghi[ARGS]{}", "I have done so"
TOOL = {"type": "function", "function": {"name": "reboot_device", "parameters": {"type": "object", "properties": {}}}}
HELLO = [{"role": "system", "content": "You are a user."}, {"role": "user", "content": "Hi! How can I help you?"}]
IMAGE = {"type": "image_url", "image_url": {"url": "https://localhost/x.png"}}
RESULT = {"role": "tool", "content": "Done."}
CONTEXT = 400
KEY = tokens.new_token()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A model that answers a message with a call, and a tool's result with a text."""
    tokenizer = family_templates.tokenizer("ids of nine characters")
    tokenizer.eos_token = "</s>"
    says = {"[/INST]": CALL, "[/RESULT]": TEXT}
    return str(tiny_model.make_speaker(tmp_path_factory.mktemp("speaker"), tokenizer, says))


@pytest.fixture(scope="module")
def api(model):
    policy = UserServer(model=model, engine="transformers", context_length=CONTEXT).as_policy()
    engine = TransformersEngine(policy)
    guard = Guard(tokens.Tokens(tokens.parsed(tokens.entry("user", ["collect"], None, KEY, date(2026, 1, 1)), "key")))
    yield ChatApi("speaker", engine, ChatCodec.of(policy), CONTEXT, 50, guard)
    engine.close()


@pytest.fixture
async def client(api):
    async def app(scope, receive, send) -> None:
        await (await api.respond(Request(scope, receive)))(scope, receive, send)

    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://user/v1", headers=headers
    ) as made:
        yield made


async def ask(client: httpx.AsyncClient, **changes: Any) -> httpx.Response:
    body = {"model": "speaker", "messages": HELLO, "tools": [TOOL], "temperature": 0.0, "seed": 3} | changes
    return await client.post("/chat/completions", json=body)


async def test_a_call_and_then_a_text_come_as_openai_writes_them(client):
    first = (await ask(client)).json()
    (choice,) = first["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert call["function"] == {"name": "reboot_device", "arguments": "{}"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "Rebooted."}
    call["name"] = "reboot_device"  # as τ² sends it back
    second = (await ask(client, messages=[*HELLO, choice["message"], result])).json()
    assert second["choices"][0]["message"] == {"role": "assistant", "content": TEXT, "refusal": None}
    assert second["choices"][0]["finish_reason"] == "stop"
    usage = second["usage"]
    assert usage["prompt_tokens"] > first["usage"]["prompt_tokens"] > usage["completion_tokens"] > 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > first["usage"]["prompt_tokens"] // 2


async def test_tool_choice_none_and_no_tools_are_the_same(client):
    without = (await ask(client, tools=None)).json()
    refused = (await ask(client, tool_choice="none", parallel_tool_calls=True, n=1, stream=False)).json()
    assert refused["usage"]["prompt_tokens"] == without["usage"]["prompt_tokens"]
    assert (await ask(client, tool_choice="auto")).json()["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"]


async def test_a_text_in_parts_is_the_same_as_in_one_piece(client):
    parts = [{"type": "text", "text": "Hi! How can "}, {"type": "text", "text": "I help you?"}]
    messages = [HELLO[0], {"role": "user", "content": parts}]
    usages = [(await ask(client, messages=each)).json()["usage"] for each in (HELLO, messages)]
    assert usages[0]["prompt_tokens"] == usages[1]["prompt_tokens"]


async def test_max_tokens_cuts_an_answer_and_says_so(client):
    answer = (await ask(client, max_completion_tokens=2)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"temprature": 0.5}, 400, "unknown_parameter", "temprature"),
        ({"stop": ["\n"]}, 400, "unsupported_parameter", "stop"),
        ({"response_format": {"type": "text"}}, 400, "unsupported_parameter", "response_format"),
        ({"stream": True}, 400, "unsupported_value", "stream"),
        ({"n": 2}, 400, "unsupported_value", "n"),
        ({"tool_choice": "required"}, 400, "unsupported_value", "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, 400, "unsupported_value", "tool_choice"),
        ({"parallel_tool_calls": False}, 400, "unsupported_value", "parallel_tool_calls"),
        ({"max_tokens": 5, "max_completion_tokens": 7}, 400, "invalid_value", "max_tokens"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_value", "messages[0].role"),
        ({"messages": None}, 400, "missing_required_parameter", "messages"),
        ({"messages": [{"role": "user"}]}, 400, "missing_required_parameter", "messages[0].content"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, 400, "invalid_value", "messages[0].content[0].type"),
        ({"messages": [RESULT]}, 400, "missing_required_parameter", "messages[0].tool_call_id"),
        ({"temperature": "hot"}, 400, "invalid_value", "temperature"),
        ({"temperature": 1e-9}, 400, "invalid_value", "temperature"),
        ({"model": "gpt-5"}, 404, "model_not_found", "model"),
        ({"messages": [{"role": "user", "content": "word " * CONTEXT}]}, 400, "context_length_exceeded", "messages"),
        ({"max_tokens": CONTEXT}, 400, "context_length_exceeded", "messages"),
    ],
)
async def test_a_request_that_cannot_be_met_is_refused_in_openai_s_shape(client, changes, status, code, param):
    answer = await ask(client, **changes)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b"\xff", b'"text"', b"[" * 100_000],
    ids=["empty", "cut", "list", "no text", "text", "too deep"],
)
async def test_a_body_that_is_no_json_object_is_refused(client, body):
    answer = await client.post("/chat/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


async def test_without_the_key_nobody_is_answered(client):
    answer = await client.post("/chat/completions", content=b"{", headers={"authorization": "Bearer none"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_the_model_is_listed_and_another_path_is_not_found(client):
    assert (await client.get("/models")).json()["data"][0]["id"] == "speaker"
    assert (await client.get("/completions")).json()["error"]["code"] == "unknown_url"


def served(model: str, **overrides: Any) -> dict[str, Any]:
    return {
        "tasks__domain": "telecom",
        "user__serve": {"model": model, "engine": "transformers", "http_port": HTTP_PORT},
        "limits__max_steps": 12,
    } | overrides


class Sessions:
    """Conversations with a served user simulator over HTTP, each of two requests that share what they begin with."""

    def __init__(self, config: RolloutConfig) -> None:
        called = served_user.as_called(config).user
        self._url, self._key = f"{called.base_url}/chat/completions", os.environ[str(called.api_key_var)]
        self._model = str(called.model).removeprefix("openai/")

    def meets_a_new_replica(self, name: str) -> bool:
        """Have a conversation. Whether its replica has never seen the instructions that all of them share."""
        messages = [{"role": "system", "content": "word " * 100}, {"role": "user", "content": f"{name} " * 50}]
        first = self._usage(name, messages)
        more = [{"role": "assistant", "content": TEXT}, {"role": "user", "content": "And now?"}]
        second = self._usage(name, messages + more)
        assert second["prompt_tokens_details"]["cached_tokens"] >= first["prompt_tokens"] - 1, "it left its replica"
        return bool(first["prompt_tokens_details"]["cached_tokens"] < 50)

    def _usage(self, name: str, messages: list[dict[str, Any]]) -> dict[str, Any]:
        body = {"model": self._model, "messages": messages, "temperature": 0.0}
        headers = {"authorization": f"Bearer {self._key}", "x-session-id": name}
        return httpx.post(self._url, json=body, headers=headers, timeout=120.0).json()["usage"]


def test_a_telecom_episode_with_the_user_s_tool_calls_is_played_counted_and_taped(cluster, model, tmp_path):
    tape = {"tape__path": str(tmp_path / "tape"), "tape__mode": "record"}
    two = served(model, **tape)
    two["user__serve"] |= {"replicas": 2}
    with start("own-user", **two) as service:
        status = service.status()["user_simulator"]
        (trajectory,) = service.collect(1, progress=False)
        application = serve.status().applications["own-user-user"]
        # Which sessions go to which replica is drawn at each start: 40 all go to one once in 10^12 times.
        sessions = Sessions(service.config)
        new = sum(sessions.meets_a_new_replica(f"s{number}") for number in range(40))
    assert new == 2, "the sessions are spread over both replicas, and each stays on its own"
    assert status == {"application": "own-user-user", "model": model, "engine": "transformers", "replicas": 2}
    assert application.status == "RUNNING"
    assert "own-user-user" not in serve.status().applications, "it ends with the service"
    assert trajectory.fault is None
    assert trajectory.provenance.user == f"openai/{served_user.model_name(service.config.user.serve)}"
    calls = [c for m in trajectory.messages if m["role"] == "user" for c in m.get("tool_calls") or ()]
    texts = [m["content"] for m in trajectory.messages if m["role"] == "user" and not m.get("tool_calls")]
    assert {call["name"] for call in calls} == {"reboot_device"}
    assert set(texts) == {TEXT}
    usage = trajectory.user_usage
    assert usage.requests == len(calls) + len(texts)
    assert usage.failed_requests == 0
    assert usage.prompt_tokens > usage.completion_tokens > usage.requests
    assert usage.cost_usd == 0.0
    assert [str(violation) for _, found in verify([trajectory]) for violation in found] == []
    (tape_file,) = (tmp_path / "tape").glob("telecom/*/*.jsonl")
    recorded = [json.loads(line) for line in tape_file.read_text().splitlines()]
    assert recorded.pop(0)["take"]["domain"] == "telecom"
    assert recorded.pop() == {"end": str(trajectory.outcome)}
    assert len(recorded) == usage.requests


def test_a_start_that_fails_names_the_user_simulator_and_leaves_nothing(cluster, model):
    broken = served(model)
    broken["user__serve"] |= {"engine_arguments": {"no_such_argument": 1}}
    with pytest.raises(ServiceError, match=r"The user simulator's replicas cannot start: .*user\.serve\.engine_arg"):
        start("broken-user", **broken)
    assert "broken-user-user" not in serve.status().applications


def test_a_template_without_tools_is_refused_where_the_user_has_tools(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)
    tokenizer.chat_template = tokenizer.chat_template.replace("tools", "no_tools")
    tiny_model.make(tmp_path, tokenizer=tokenizer)
    with pytest.raises(CodecError, match=r"user\.serve: the user of telecom has tools"):
        check(settings(**served(str(tmp_path))))
    check(settings(**served(str(tmp_path), tasks__domain="retail")))


def test_the_model_s_folder_is_checked_under_the_setting_s_own_name(tmp_path):
    with pytest.raises(ConfigError, match=r"^user\.serve\.model: there is no folder"):
        check(settings(**served(str(tmp_path / "none"))), here=True)


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"user__model": "openai/m"}, r"user\.model .*user\.serve names"),
        ({"user__base_url": "http://there/v1"}, r"user\.base_url .*user\.serve names"),
        ({"user__api_key_var": "KEY"}, r"user\.api_key_var .*user\.serve names"),
        ({"user__kind": "scripted"}, r"user\.serve .*user\.kind is scripted"),
        ({"policy__http_port": HTTP_PORT + 1}, r"user\.serve\.http_port .*one address"),
    ],
    ids=["model", "base_url", "api_key_var", "scripted", "another port"],
)
def test_a_served_model_beside_another_user_is_refused(others, named):
    with pytest.raises(ConfigError, match=named):
        settings(**served("some/model", **others))


def test_a_conversation_stays_on_its_replica_and_the_key_is_no_part_of_the_settings(monkeypatch):
    from rollout_service.tau2.llm_user import ReliableUserSimulator

    monkeypatch.setenv("USER_SIMULATOR_KEY", KEY)
    config = served_user.as_called(settings(**served("/models/own", policy__engine="scripted")))
    task = tasks.get(tasks.references("telecom", "base")[0])
    tools = domain.get("telecom").user_tools(task)
    made = [ReliableUserSimulator(task, tools, config.user, UserUsage(), Deadline(60.0)) for _ in range(2)]
    sessions = {user.llm_args["extra_headers"]["x-session-id"] for user in made}
    assert len(sessions) == 2
    assert made[0].llm == "openai/own"
    assert made[0].llm_args["api_base"] == f"http://127.0.0.1:{HTTP_PORT}/rollout-user/v1"
    assert made[0].llm_args["api_key"] == KEY
    assert KEY not in config.model_dump_json()


def test_a_replica_s_stored_arguments_hold_no_password_of_another_model(model):
    review = {"share": 0.5, "model": "openai/r", "base_url": "http://us:correct-horse@127.0.0.1:9/v1"}
    judge = {"model": "openai/j", "base_url": "http://us:battery-staple@127.0.0.1:9/v1"}
    config = settings(
        user__serve={"model": model, "engine": "transformers"}, user__review=review, evaluation__judge=judge
    )
    [stored] = _bound(config)._bound_deployment.init_args
    assert not {"correct-horse", "battery-staple"} & set(re.split(r"[:@]", str(stored.model_dump(mode="json"))))
    assert stored.user.serve == config.user.serve
