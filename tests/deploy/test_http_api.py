"""What a policy replica says over HTTP, around a generate that is a function of the prompt."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from deploy import http_api
from deploy.http_api import respond
from rollout_service.config import PolicyConfig
from rollout_service.config.sampling import Sampling
from rollout_service.gateway.guard import Guard
from rollout_service.gateway.tokens import Tokens, digest_of, new_token, parsed
from rollout_service.policy.base import Generation, RequestError, TurnInfo
from rollout_service.policy.sglang_format import from_answer, to_payload
from tests.policy.test_sglang_request import ANYTHING, FIELDS, PARAMETERS

POLICY = PolicyConfig(engine="transformers", model="some/model", context_length=4096)


def some_of(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), ANYTHING, max_size=4)


class FakeReplica:
    """Samples the prompt's tokens plus 1, as many as it may. Token 666 it does not know."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], Sampling, dict[str, Any]]] = []
        self.finished: list[list[int]] = []
        self.cancelled: list[list[int]] = []

    async def generate(self, input_ids, sampling: Sampling, info: TurnInfo) -> Generation:
        prompt = input_ids.tolist()
        assert input_ids.dtype == np.int32
        self.asked.append((prompt, sampling, info))
        try:
            await asyncio.sleep(0.001 * len(prompt))  # the longer the prompt the later it is done
            if 666 in prompt:
                raise RequestError("token id 666 is not one of the model's 600")
            await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            self.cancelled.append(prompt)
            raise
        self.finished.append(prompt)
        tokens = (input_ids + 1)[: sampling.max_new_tokens]
        return Generation(
            token_ids=tokens,
            logprobs=-tokens.astype(np.float32) / 8,
            weight_versions=np.full(len(tokens), 4, dtype=np.int32),
            finish_reason="length",
            prompt_tokens=len(input_ids),
            cached_tokens=1,
        )


@pytest.fixture
def replica() -> FakeReplica:
    return FakeReplica()


@pytest.fixture
async def client(replica):
    async with httpx.AsyncClient(transport=transport(replica.generate), base_url="http://replica") as client:
        yield client


OPEN = Guard(None)


def transport(generate: Callable[..., Any], policy: PolicyConfig = POLICY, guard: Guard = OPEN) -> httpx.ASGITransport:
    async def app(scope, receive, send) -> None:
        request = Request(scope, receive)
        response: Response = await respond(request, policy, generate, 4, guard)
        await response(scope, receive, send)

    return httpx.ASGITransport(app)


def message(response: httpx.Response) -> str:
    return response.json()["error"]["message"]


async def test_one_prompt_gets_one_answer_in_sglang_s_format(client, replica):
    response = await client.post(
        "/generate", json={"input_ids": [5, 6], "sampling_params": {"temperature": 0}, "rid": "mine"}
    )
    assert response.status_code == 200
    answer = response.json()
    assert answer["meta_info"].pop("e2e_latency") > 0.003
    assert answer == {
        "text": "",
        "output_ids": [6, 7],
        "meta_info": {
            "id": "mine",
            "finish_reason": {"type": "length", "length": 2},
            "prompt_tokens": 2,
            "completion_tokens": 2,
            "cached_tokens": 1,
            "output_token_logprobs": [[-0.75, 6, None], [-0.875, 7, None]],
            "weight_version": "4",
            "weight_versions": [{"version": "4", "start": 0, "end": 2}],
        },
    }
    assert replica.asked == [([5, 6], Sampling(temperature=0, max_new_tokens=128), TurnInfo())]


async def test_what_our_own_client_sends_and_reads_is_what_a_handle_would_give(client, replica):
    prompt, sampling = np.asarray([8, 9, 10], dtype=np.int32), Sampling(max_new_tokens=2, stop_token_ids=(3,))
    response = await client.post("/generate", json=to_payload(prompt, sampling, "r"))
    came, direct = from_answer(response.json()), await replica.generate(prompt, sampling, TurnInfo())
    came.check()
    for name in ("token_ids", "logprobs", "weight_versions"):
        assert getattr(came, name).tobytes() == getattr(direct, name).tobytes()
    assert (came.finish_reason, came.prompt_tokens, came.cached_tokens) == ("length", 3, 1)
    assert [sampling for _, sampling, _ in replica.asked] == [sampling, sampling]


async def test_a_batch_gets_its_answers_in_order_and_is_sampled_together(client, replica):
    ids = [[1, 2, 3, 4], [5], [6, 7]]
    response = await client.post("/generate", json={"input_ids": ids})
    assert [answer["output_ids"] for answer in response.json()] == [[2, 3, 4, 5], [6], [7, 8]]
    assert replica.finished == [[5], [6, 7], [1, 2, 3, 4]], "one after the other would be in order"


async def test_a_batch_of_one_gets_a_list_of_one(client):
    response = await client.post("/generate", json={"input_ids": [[1]]})
    assert [answer["output_ids"] for answer in response.json()] == [[2]]


async def test_the_rids_of_a_batch_are_those_of_its_prompts(client):
    response = await client.post("/generate", json={"input_ids": [[1], [2]], "rid": ["a", "b"]})
    assert [(a["meta_info"]["id"], a["output_ids"]) for a in response.json()] == [("a", [2]), ("b", [3])]


async def test_prompts_without_a_rid_get_one_each(client):
    response = await client.post("/generate", json={"input_ids": [[1], [2]], "rid": None})
    first, second = (answer["meta_info"]["id"] for answer in response.json())
    assert first != second
    assert min(len(first), len(second)) > 8


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"text": "hello"}, "input_ids"),
        ({"input_ids": []}, "input_ids"),
        ({"input_ids": [-1]}, "input_ids"),
        ({"input_ids": [[1], "x"]}, "input_ids"),
        ([1, 2], "input_ids"),
        ({"input_ids": [1], "stream": True}, "stream"),
        ({"input_ids": [1], "lora_path": "x"}, "lora_path"),
        ({"input_ids": [1], "sampling_params": [{}]}, "sampling_params"),
        ({"input_ids": [1], "sampling_params": {"stop": ["x"]}}, "sampling_params.stop"),
        ({"input_ids": [1], "sampling_params": {"n": 2}}, "n "),
        ({"input_ids": [1], "sampling_params": {"temperature": -1}}, "sampling_params.temperature"),
        ({"input_ids": [1], "sampling_params": {"max_new_tokens": 0}}, "sampling_params.max_new_tokens"),
        ({"input_ids": [1], "sampling_params": {"min_p": 0.5}}, "sampling_params.min_p"),
        pytest.param(
            {"input_ids": 5},
            "input_ids",
        ),
        pytest.param(
            {"input_ids": [[1], [2]], "rid": ["only one"]},
            "rid",
        ),
        pytest.param(
            {"input_ids": [1], "rid": "\ud800"},
            "rid",
        ),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict | list) else "",
)
async def test_a_request_that_cannot_be_met_is_refused_with_the_field_before_anything_is_sampled(
    client, replica, body, named
):
    response = await client.post("/generate", content=json.dumps(body))
    assert response.status_code == 400
    assert named in message(response)
    assert replica.asked == []


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\xfa", b"input_ids=1"], ids=repr)
async def test_a_body_that_is_not_json_is_refused(client, replica, body):
    response = await client.post("/generate", content=body)
    assert (response.status_code, replica.asked) == (400, [])
    assert message(response)


async def test_what_the_engine_refuses_is_refused_with_its_word(client):
    response = await client.post("/generate", json={"input_ids": [1, 666]})
    assert (response.status_code, message(response)) == (400, "token id 666 is not one of the model's 600")


async def test_a_batch_with_one_prompt_that_the_engine_refuses_is_refused(client):
    response = await client.post("/generate", json={"input_ids": [[666], [1, 2, 3]]})
    assert (response.status_code, message(response)) == (400, "token id 666 is not one of the model's 600")


async def test_nothing_of_a_refused_batch_is_sampled_on(client, replica):
    response = await client.post("/generate", json={"input_ids": [[666], [1] * 5000]})
    assert response.status_code == 400
    await asyncio.sleep(0)
    assert replica.cancelled == [[1] * 5000]


async def test_a_client_that_goes_away_cancels_its_prompts(client, replica):
    task = asyncio.create_task(client.post("/generate", json={"input_ids": [[1] * 5000, [2] * 5000]}))
    async with asyncio.timeout(120):
        while len(replica.asked) < 2:  # noqa: ASYNC110 - the body is read in a thread
            await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [prompt[0] for prompt in replica.cancelled] == [1, 2]


async def test_an_engine_that_fails_is_not_a_bad_request():
    async def generate(input_ids, sampling, info):
        raise RuntimeError("out of memory")

    async with httpx.AsyncClient(transport=transport(generate), base_url="http://replica") as client:
        with pytest.raises(RuntimeError, match="out of memory"):
            await client.post("/generate", json={"input_ids": [1]})


async def test_health_is_an_empty_200(client):
    response = await client.get("/health")
    assert (response.status_code, response.content) == (200, b"")


async def test_model_info_names_the_model_its_context_and_its_weights_version_as_sglang_does(client):
    response = await client.get("/model_info")
    assert response.json() == {
        "model_path": "some/model",
        "context_length": 4096,
        "weight_version": "4",
        "is_generation": True,
    }


async def test_paths_work_below_a_prefix(client):
    assert (await client.get("/policy/health")).status_code == 200
    assert (await client.post("/policy/generate", json={"input_ids": [1]})).json()["output_ids"] == [2]


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("GET", "/generate"), ("POST", "/health"), ("POST", "/v1/chat/completions")]
)
async def test_anything_else_is_404_and_says_what_there_is(client, replica, method, path):
    response = await client.request(method, path, json={"input_ids": [1]})
    assert (response.status_code, replica.asked) == (404, [])
    assert message(response) == f"there is no {method} {path}; there are generate, model_info and health"


async def test_the_scripted_engine_answers_no_tokens_over_http_but_says_that_it_is_well(replica):
    scripted = transport(replica.generate, PolicyConfig())
    async with httpx.AsyncClient(transport=scripted, base_url="http://replica") as client:
        response = await client.post("/generate", json={"input_ids": [1]})
        assert response.status_code == 400
        assert "scripted engine" in message(response)
        assert replica.asked == []
        assert (await client.get("/health")).status_code == 200


# What a request may cost ----------------------------------------------------------------------------------------------

SMALL = POLICY.model_copy(update={"http_body_bytes": 2000, "http_prompts": 3, "http_body_seconds": 0.05})


@pytest.fixture
async def small(replica):
    async with httpx.AsyncClient(transport=transport(replica.generate, SMALL), base_url="http://replica") as client:
        yield client


async def test_a_body_that_is_said_to_be_too_large_is_refused_without_reading_it(replica):
    async def receive() -> dict[str, Any]:
        pytest.fail("it was read")

    headers = [(b"content-length", b"2001")]
    scope = {"type": "http", "method": "POST", "path": "/generate", "headers": headers, "query_string": b""}
    response = await respond(Request(scope, receive), SMALL, replica.generate, 0, OPEN)
    assert response.status_code == 413
    assert b"policy.http_body_bytes=2000" in response.body


@pytest.mark.parametrize("length", ["2001", "9" * 5000])
async def test_so_is_one_of_any_length(small, replica, length):
    response = await small.post("/generate", content=b"{}", headers={"content-length": length})
    assert (response.status_code, replica.asked) == (413, [])


async def test_a_body_that_grows_too_large_is_read_no_further(small, replica):
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 100
            yield b" " * 100

    response = await small.post("/generate", content=parts())
    assert (response.status_code, replica.asked) == (413, [])
    assert "policy.http_body_bytes=2000" in message(response)
    assert sent < 4000


async def test_a_body_within_the_limit_is_answered(small):
    body = json.dumps({"input_ids": [1]}).encode().ljust(2000)
    assert (await small.post("/generate", content=body)).json()["output_ids"] == [2]


async def test_a_sender_that_is_too_slow_is_refused(small, replica):
    never = asyncio.Event()

    async def drips() -> AsyncIterator[bytes]:
        yield b'{"input_ids": ['
        await never.wait()

    response = await small.post("/generate", content=drips())
    assert (response.status_code, replica.asked) == (408, [])
    assert "policy.http_body_seconds=0.05" in message(response)


async def test_more_prompts_than_a_request_may_have_are_refused(small, replica):
    assert len((await small.post("/generate", json={"input_ids": [[1]] * 3})).json()) == 3
    replica.asked.clear()
    response = await small.post("/generate", json={"input_ids": [[1]] * 4})
    assert (response.status_code, replica.asked) == (400, [])
    assert "input_ids has more than 3 prompts" in message(response)


@pytest.mark.parametrize(("tokens", "beside"), [(10, False), (30_000, True)])
async def test_a_long_body_is_read_and_a_long_answer_written_beside_the_event_loop(monkeypatch, tokens, beside):
    threads = []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*args: Any) -> Any:
            threads.append(threading.get_ident())
            return function(*args)

        return inner

    async def generate(input_ids, sampling, info) -> Generation:
        tokens = np.repeat(input_ids, 2)
        return Generation(tokens, -np.ones(len(tokens), np.float32), np.zeros(len(tokens), np.int32), "length")

    monkeypatch.setattr(http_api, "read_request", noted(http_api.read_request))
    monkeypatch.setattr(http_api, "to_answer", noted(http_api.to_answer))
    ids = list(range(tokens))
    async with httpx.AsyncClient(transport=transport(generate), base_url="http://replica") as client:
        answer = (await client.post("/generate", json={"input_ids": ids})).json()
    assert answer["output_ids"] == [i for i in ids for _ in range(2)]
    assert [thread != threading.get_ident() for thread in threads] == [beside, beside]


async def test_the_prompts_of_a_batch_are_started_one_by_one_and_others_run_between():
    ticks, started = 0, []

    async def generate(input_ids, sampling, info) -> Generation:
        started.append(ticks)
        return await FakeReplica().generate(input_ids, sampling, info)

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.ensure_future(tick())
    async with httpx.AsyncClient(transport=transport(generate), base_url="http://replica") as client:
        await client.post("/generate", json={"input_ids": [[1]] * 20})
    ticking.cancel()
    assert len(set(started)) == 20


@given(fields=some_of(FIELDS), params=some_of(PARAMETERS))
def test_any_request_is_answered_or_refused_and_never_an_error_of_the_server(fields, params):
    body = json.dumps({"input_ids": [1], "sampling_params": {"max_new_tokens": 1} | params} | fields)

    async def asked() -> httpx.Response:
        generate = FakeReplica().generate
        async with httpx.AsyncClient(transport=transport(generate), base_url="http://replica") as client:
            return await client.post("/generate", content=body)

    response = asyncio.run(asked())
    assert response.status_code in (200, 400)
    assert response.status_code == 200 or message(response)


async def test_where_there_are_tokens_every_route_wants_one_that_allows_turns(replica):
    good, weak = new_token(), new_token()
    tokens = Tokens(
        parsed(
            f'good: {{sha256: "{digest_of(good)}", scopes: [collect]}}\n'
            f'weak: {{sha256: "{digest_of(weak)}", scopes: [read, weights]}}',
            "test",
        )
    )
    guarded = transport(replica.generate, guard=Guard(tokens))
    async with httpx.AsyncClient(transport=guarded, base_url="http://replica") as client:
        for method, path in [("POST", "/generate"), ("GET", "/health"), ("GET", "/model_info"), ("GET", "/nowhere")]:
            for token, status in [(None, 401), (good[:-1], 401), (new_token(), 401), (weak, 403)]:
                headers = {} if token is None else {"authorization": f"Bearer {token}"}
                response = await client.request(method, path, headers=headers, content=b"no JSON")
                assert response.status_code == status, (method, path)
                assert response.json()["error"]["message"].endswith(".")
                assert token is None or token[4:20] not in response.text
        assert replica.asked == []
        body = {"input_ids": [5, 6]}
        bearer = await client.post("/generate", json=body, headers={"authorization": f"Bearer {good}"})
        password = await client.post("/generate", json=body, auth=("anybody", good))
        assert [bearer.status_code, password.status_code] == [200, 200]
