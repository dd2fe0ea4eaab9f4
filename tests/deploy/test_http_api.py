"""What a policy replica says over HTTP, around a generate that is a function of the prompt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.requests import Request
from starlette.responses import Response

from deploy.http_api import respond
from rollout_service.config import Policy
from rollout_service.policy.base import Generation, Sampling
from rollout_service.policy.sglang_format import from_answer, to_payload

POLICY = Policy(engine="transformers", model="some/model")


class FakeReplica:
    """Samples the prompt's tokens plus 1, as many as it may. Token 666 it does not know."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], Sampling, dict[str, Any]]] = []
        self.finished: list[list[int]] = []
        self.cancelled: list[list[int]] = []

    async def generate(self, input_ids, sampling: Sampling, metadata: dict[str, Any]) -> Generation:
        prompt = input_ids.tolist()
        assert input_ids.dtype == np.int32
        self.asked.append((prompt, sampling, metadata))
        try:
            await asyncio.sleep(0.001 * len(prompt))  # the longer the prompt the later it is done
            if 666 in prompt:
                raise ValueError("token id 666 is not one of the model's 600")
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


def transport(generate: Callable[..., Any], policy: Policy = POLICY) -> httpx.ASGITransport:
    async def app(scope, receive, send) -> None:
        request = Request(scope, receive)
        response: Response = await respond(request, policy, generate, 4)
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
    assert replica.asked == [([5, 6], Sampling(temperature=0, max_new_tokens=128), {})]


async def test_what_our_own_client_sends_and_reads_is_what_a_handle_would_give(client, replica):
    prompt, sampling = np.asarray([8, 9, 10], dtype=np.int32), Sampling(max_new_tokens=2, stop_token_ids=(3,))
    response = await client.post("/generate", json=to_payload(prompt, sampling, "r"))
    came, direct = from_answer(response.json()), await replica.generate(prompt, sampling, {})
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
    response = await client.post("/generate", json={"input_ids": [[666], [1] * 10]})
    assert response.status_code == 400
    await asyncio.sleep(0)
    assert replica.cancelled == [[1] * 10]


async def test_a_client_that_goes_away_cancels_its_prompts(client, replica):
    task = asyncio.create_task(client.post("/generate", json={"input_ids": [[1] * 500, [2] * 500]}))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(replica.asked) == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [prompt[0] for prompt in replica.cancelled] == [1, 2]


async def test_an_engine_that_fails_is_not_a_bad_request():
    async def generate(input_ids, sampling, metadata):
        raise RuntimeError("out of memory")

    async with httpx.AsyncClient(transport=transport(generate), base_url="http://replica") as client:
        with pytest.raises(RuntimeError, match="out of memory"):
            await client.post("/generate", json={"input_ids": [1]})


async def test_health_is_an_empty_200(client):
    response = await client.get("/health")
    assert (response.status_code, response.content) == (200, b"")


async def test_model_info_names_the_model_and_its_weights_version_as_sglang_does(client):
    response = await client.get("/model_info")
    assert response.json() == {"model_path": "some/model", "weight_version": "4", "is_generation": True}


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
    scripted = transport(replica.generate, Policy())
    async with httpx.AsyncClient(transport=scripted, base_url="http://replica") as client:
        response = await client.post("/generate", json={"input_ids": [1]})
        assert response.status_code == 400
        assert "scripted engine" in message(response)
        assert replica.asked == []
        assert (await client.get("/health")).status_code == 200
