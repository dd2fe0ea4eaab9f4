"""SGLang's `/generate`, both sides: our client on a real SGLang server, and any client on our replicas."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable

import aiohttp
import numpy as np
import pytest

from rollout_service.adapters.slime import generate
from rollout_service.adapters.slime import service as slime_service
from rollout_service.audit.verify import verify
from rollout_service.chat.codec import ChatCodec
from rollout_service.config import PolicyConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import EpisodeEnd, WeightError
from rollout_service.policy.base import TurnInfo
from rollout_service.policy.endpoint import settled
from rollout_service.policy.sglang_http import SglangHttpPolicy
from rollout_service.tau2 import tasks
from tests.support import openai_server, sglang, sglang_server, slime, tiny_model
from tests.support.ports import free_port
from tests.support.reference import Reference, error
from tests.support.services import start
from tests.support.workers import program

pytestmark = [pytest.mark.sglang, sglang.needed, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(tiny_model.make(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def server(forks, model, tmp_path_factory):
    """URL of a bare SGLang server."""
    port = free_port()
    flags = ["--model-path", model, "--port", str(port), "--skip-tokenizer-init"]
    flags += ["--sleep-on-idle"]  # else its scheduler keeps a core busy while it waits for the tests
    for name, value in sglang.ENGINE_ARGUMENTS.items():
        flags += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    with open(tmp_path_factory.mktemp("log") / "server.log", "wb") as log:
        process = program.start(forks, sglang_server.__file__, *flags, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        asyncio.run(until_healthy(url, process))
        yield url
    finally:
        process.kill()
        process.wait()


async def until_healthy(url: str, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 200
    async with aiohttp.ClientSession() as session:
        while True:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not come up"
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)


async def post(url: str, path: str, **body):
    async with aiohttp.ClientSession() as session, session.post(f"{url}{path}", json=body) as response:
        return response.status, await response.json(content_type=None)


async def until_sampling(url: str, fits: Callable[[int], bool] = bool) -> None:
    """Wait until the number of turns of which the server has sampled a token, and samples more, fits."""
    deadline = time.monotonic() + 120
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"{url}/v1/loads") as response:
                turns = sum(load["num_running_reqs"] for load in (await response.json())["loads"])
            if fits(turns):
                return
            assert time.monotonic() < deadline, f"the server samples {turns} turns"
            await asyncio.sleep(0.02)


async def weight_version(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/model_info") as response:
        return (await response.json())["weight_version"]


PROMPT = np.arange(100, 160, dtype=np.int32)
LONG = Sampling(max_new_tokens=600, ignore_eos=True)


async def test_turns_over_http_are_exact_and_the_second_finds_the_first_cached(server, model):
    policy = SglangHttpPolicy(server)
    first = await policy.generate(PROMPT, Sampling(max_new_tokens=20, ignore_eos=True), "s", TurnInfo())
    again = np.concatenate([PROMPT, first.token_ids])
    second = await policy.generate(again, Sampling(max_new_tokens=20, ignore_eos=True), "s", TurnInfo())
    await policy.aclose()
    assert second.cached_tokens >= len(again) - 1
    whole = np.concatenate([again, second.token_ids])
    expected = Reference(model).logprobs(whole)[len(PROMPT) :]
    assert np.abs(np.concatenate([first.logprobs, second.logprobs]) - expected).max() < 1e-4
    assert set(first.weight_versions.tolist()) == {0}


async def test_a_turn_that_the_server_aborts_for_new_weights_goes_on_from_its_tokens(server, model):
    policy = SglangHttpPolicy(server)
    turn = asyncio.ensure_future(policy.generate(PROMPT, LONG, "s", TurnInfo()))
    await until_sampling(server)
    await post(server, "/pause_generation", mode="abort")
    status, _ = await post(server, "/update_weights_from_disk", model_path=model, weight_version="3")
    assert status == 200
    await post(server, "/continue_generation")
    generation = await turn
    await policy.aclose()
    generation.check()
    assert len(generation.token_ids) == LONG.max_new_tokens
    assert sorted(set(generation.weight_versions.tolist())) == [0, 3]
    expected = Reference(model).logprobs(np.concatenate([PROMPT, generation.token_ids]))[len(PROMPT) :]
    assert np.abs(generation.logprobs - expected).max() < 1e-4, "the same weights under another number"


async def test_cancelling_a_turn_aborts_it_in_the_server(server):
    policy = SglangHttpPolicy(server)
    turn = asyncio.ensure_future(
        policy.generate(PROMPT, Sampling(max_new_tokens=30000, ignore_eos=True), "s", TurnInfo())
    )
    await until_sampling(server)
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    await until_sampling(server, lambda turns: turns == 0)
    await policy.aclose()


async def test_what_the_server_refuses_is_not_repeated(server):
    policy = SglangHttpPolicy(server, retry_seconds=3600)
    impossible = Sampling.model_construct(**Sampling().model_dump() | {"top_p": 5.0})
    with pytest.raises(ValueError, match="400"):
        await policy.generate(PROMPT, impossible, "s", TurnInfo())
    await policy.aclose()


async def test_the_server_is_asked_how_many_tokens_it_takes_and_what_is_longer_ends_the_episode(server, model):
    settings = PolicyConfig(engine="http", url=server, tokenizer=model)
    taken = (await settled(settings)).context_length
    assert taken == 65536 - 6, "what SGLang's scheduler takes of a model of 65,536"
    policy = SglangHttpPolicy(server)
    for length in (taken, 65536, 70000):  # too long for the scheduler, for the context, and by far
        with pytest.raises(EpisodeEnd, match="context_length"):
            await policy.generate(np.arange(length, dtype=np.int32) % 4000, Sampling(max_new_tokens=1), "s", TurnInfo())
    await policy.aclose()


async def test_a_turn_for_which_prompt_and_room_together_are_too_long_is_sampled_all_the_same(server):
    policy = SglangHttpPolicy(server)
    soon = Sampling(max_new_tokens=65536, stop_token_ids=tuple(range(1024)))  # every fourth token of the model
    turn = await policy.generate(PROMPT, soon, "s", TurnInfo())
    await policy.aclose()
    assert turn.finish_reason == "stop"
    assert [token < 1024 for token in turn.token_ids].index(True) == len(turn.token_ids) - 1, "the stop token is in it"


async def test_an_endpoint_that_is_gone_is_named_after_the_retries():
    url = f"http://127.0.0.1:{free_port()}"
    policy = SglangHttpPolicy(url, retry_seconds=0.5)
    with pytest.raises(ConnectionError, match=url):
        await policy.generate(PROMPT, Sampling(), "s", TurnInfo())
    await policy.aclose()


def test_episodes_run_on_an_endpoint_of_others(cluster, server, model):
    endpoint = {"policy__engine": "http", "policy__url": server, "policy__tokenizer": model}
    how = {"policy__sampling": {"max_new_tokens": 40}, "tasks__ids": ["create_task_1"], "user__model": "openai/talker"}
    talker = openai_server.OpenAIServer(openai_server.talker(2))
    with talker as user, start("http", user__base_url=user.base_url, **endpoint, **how) as client:
        batch = client.collect(6, progress=False)
        version = client.weight_version()
        with pytest.raises(WeightError, match=r"served by others"):
            client.update_weights(model, version=version + 1)
    assert [str(violation) for _, found in verify(batch) for violation in found] == []
    reference = Reference(model)
    sampled = {int(t.segments[0].weight_versions.max()) for t in batch}
    assert sampled == {version}, "the service learns the endpoint's version from its tokens"
    assert max(error(t.segments[0], {version: reference}) for t in batch) < 1e-4


async def test_slime_s_generate_is_exact_on_a_real_server_and_goes_on_after_its_pause(cluster, server, model):
    with openai_server.OpenAIServer(openai_server.talker(2)) as user:
        service = {
            "service.name": "slime-real",
            "service.actors": 1,
            "tasks.domain": "mock",
            "user.model": "openai/talker",
            "user.base_url": user.base_url,
        }
        args = slime.make_args(server, hf_checkpoint=model, rollout_service_set=service)
        how = slime.SAMPLING | {"temperature": 1.0, "max_new_tokens": 250}
        task = tasks.references("mock")[0]
        before = await weight_version(server)
        try:
            await generate(args, slime.make_sample(task=task), how | {"max_new_tokens": 10})
            asked = (slime.make_sample(index, 0, task) for index in range(4))
            playing = asyncio.gather(*(generate(args, sample, how) for sample in asked))
            await until_sampling(server)
            await post(server, "/pause_generation")  # as slime asks for it
            assert not playing.done()
            await post(server, "/update_weights_from_disk", model_path=model, weight_version="9")
            await post(server, "/continue_generation")
            samples = await playing
        finally:
            slime_service.close()
    reference, end_of_turn = Reference(model), ChatCodec.load(model).end_of_turn_id
    for sample in samples:
        assert sample.status == slime.status("completed")
        first = len(sample.tokens) - sample.response_length
        sampled = np.array(sample.loss_mask, bool)
        expected = reference.logprobs(sample.tokens)[first:]
        assert np.abs(np.array(sample.rollout_log_probs) - expected)[sampled].max() < 1e-4
        assert not np.array(sample.rollout_log_probs)[~sampled].any()
        turns = np.split(sample.tokens[first:], np.flatnonzero(np.diff(sampled)) + 1)[::2]
        whole = [len(turn) == how["max_new_tokens"] or turn[-1] == end_of_turn for turn in turns]
        assert len(turns) == 2, "τ² begins with the user, who says two things"
        assert all(whole), "a turn that was interrupted is as long as any"
        assert sample.weight_versions[1] == "9"
    first_turns = {sample.weight_versions[0] for sample in samples}
    assert before in first_turns, "a turn that was being sampled goes on from its tokens"
    assert first_turns <= {before, "9"}, "a turn that had sampled nothing by then is all of the new version"
