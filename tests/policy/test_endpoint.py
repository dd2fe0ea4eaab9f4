"""An endpoint is asked how many tokens it takes; where it does not say, the setting is demanded."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from rollout_service.config import PolicyConfig
from rollout_service.errors import ConfigError, ServiceError
from rollout_service.policy.endpoint import settled


@asynccontextmanager
async def endpoint(answers: dict[str, Any]) -> AsyncIterator[tuple[str, list[str]]]:
    """Its URL, and the paths that it was asked for. An answer that is a number is a status."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        said = answers.get(request.path, 404)
        if isinstance(said, list):
            said = said.pop(0) if len(said) > 1 else said[0]
        if isinstance(said, int):
            return web.Response(status=said, text="<html>")
        return web.Response(text=said) if isinstance(said, str) else web.json_response(said)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


def policy(url: str, **fields: Any) -> PolicyConfig:
    return PolicyConfig(engine="http", url=url, tokenizer="/nowhere", **{"retry_seconds": 5.0} | fields)


SAID = {
    "SGLang": ({"/server_info": {"context_length": 8192, "max_req_input_len": 8186, "tp_size": 1}}, 8186),
    "SGLang with a small cache": ({"/server_info": {"context_length": 131072, "max_req_input_len": 16378}}, 16378),
    "SGLang, whose context is the model's": (
        {"/server_info": {"context_length": None, "max_req_input_len": 32762}},
        32762,
    ),
    "an old SGLang": ({"/get_server_info": {"context_length": 4096}}, 4096),
    "our replicas": ({"/model_info": {"model_path": "m", "weight_version": "0", "context_length": 2048}}, 2048),
    "vLLM": ({"/v1/models": {"data": [{"id": "a", "max_model_len": 40960}]}}, 40960),
    "several models": ({"/v1/models": {"data": [{"max_model_len": 40960}, {"max_model_len": 8192}, {}]}}, 8192),
    "a web page first": ({"/server_info": "<html>", "/v1/models": {"data": [{"max_model_len": 512}]}}, 512),
    "a router whose servers start": (
        {"/server_info": [503, 503, {"context_length": 1024, "max_req_input_len": True}]},
        1024,
    ),
}


@pytest.mark.parametrize(("answers", "length"), SAID.values(), ids=SAID)
async def test_the_context_is_what_the_endpoint_says(answers: dict[str, Any], length: int):
    async with endpoint(answers) as (url, _):
        assert (await settled(policy(url + "/"))).context_length == length


async def test_what_the_settings_say_holds_and_nobody_is_asked():
    async with endpoint({}) as (url, asked):
        chosen = policy(url, context_length=4096)
        assert await settled(chosen) == chosen
        assert await settled(PolicyConfig()) == PolicyConfig()
        assert asked == []


@pytest.mark.parametrize("answers", [{}, {"/server_info": {"context_length": None}}, {"/v1/models": {"data": None}}])
async def test_an_endpoint_that_does_not_say_makes_the_setting_a_duty(answers: dict[str, Any]):
    async with endpoint(answers) as (url, _):
        with pytest.raises(ConfigError, match=rf"policy\.context_length is not set.*{url}") as refused:
            await settled(policy(url))
    assert "Set it" in refused.value.remedy


@pytest.mark.parametrize("answers", [None, {"/server_info": 503}])
async def test_an_endpoint_that_is_not_there_is_named(answers: dict[str, Any] | None):
    async with endpoint(answers or {}) as (url, _):
        if answers is not None:
            with pytest.raises(ServiceError, match=rf"policy\.url: {url} cannot be asked.*503"):
                await settled(policy(url, retry_seconds=0.0))
    if answers is None:
        with pytest.raises(ServiceError, match=rf"policy\.url: {url} cannot be asked"):
            await settled(policy(url, retry_seconds=0.0))
