"""slime's hooks end to end: real Ray, real τ²-bench, and an engine behind HTTP as slime's router is."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from rollout_service.adapters.slime import generate, generate_rollout, reward_post_process
from rollout_service.adapters.slime import service as slime_service
from rollout_service.adapters.slime.samples import METADATA, flat
from rollout_service.client import RolloutClient
from rollout_service.errors import CodecError, ConfigError, ServiceError, TaskError
from rollout_service.policy.base import TurnInfo
from rollout_service.tau2 import tasks
from tests.support import slime
from tests.support.slime_router import Router, logprob, routing, scripted

MOCK = [tasks.references("mock")[position] for position in (0, 3, 8)]
"""Of different openings, and the gold actions score 1."""

SERVICE = {
    "service.name": "slime",
    "service.actors": 1,
    "service.slots": 64,
    "service.max_attempts": 1,
    "tasks.domain": "mock",
    "policy.retry_seconds": 1.0,
}


@pytest.fixture(scope="module")
def shared_router(cluster, embedded) -> Iterator[Router]:
    with routing(embedded, MOCK) as server:
        yield server


@pytest.fixture
def router(shared_router) -> Iterator[Router]:
    yield shared_router
    shared_router.calm()


@pytest.fixture
def args(router) -> Namespace:
    return slime.make_args(router.url, rollout_service_set=SERVICE)


async def one(args: Namespace, task: Any = MOCK[0], index: int = 0, **kwargs: Any) -> Any:
    return await generate(args, slime.make_sample(index, 0, task), dict(slime.SAMPLING), **kwargs)


def check(sample: Any) -> None:
    """What slime asserts of a sample, and what makes it right."""
    assert len(sample.loss_mask) == len(sample.rollout_log_probs) == sample.response_length < len(sample.tokens)
    response = sample.tokens[-sample.response_length :]
    expected = [logprob(t) if mask else 0.0 for t, mask in zip(response, sample.loss_mask, strict=True)]
    assert sample.rollout_log_probs == pytest.approx(expected)


class Stop:
    """slime's `GenerateState`, of which we read `aborted`."""

    aborted = False


@pytest.fixture
def stop(monkeypatch) -> Stop:
    state, module = Stop(), ModuleType("slime.rollout.sglang_rollout")
    module.GenerateState = lambda args: state
    monkeypatch.setitem(sys.modules, "slime.rollout.sglang_rollout", module)
    return state


async def test_generate_fills_the_sample_with_an_episode(args, router):
    sample = await one(args, index=7)
    check(sample)
    assert (sample.status, sample.reward, sample.index, sample.rollout_id) == (slime.status("completed"), 1.0, 7, 7)
    assert sample.metadata[METADATA]["task"]["task_id"] == MOCK[0].task_id
    assert sum(sample.loss_mask) > 0
    assert set(sample.weight_versions) == {str(router.version)}
    assert sample.response


async def test_slime_s_sampling_parameters_and_one_routing_key_reach_the_engine(args, router):
    await one(args)
    for request in router.requests:
        sent = request["sampling_params"]
        assert (sent["temperature"], sent["top_p"], sent["max_new_tokens"]) == (0.7, 1.0, 512)
    assert len({request["key"] for request in router.requests}) == 1
    assert all(request["rid"].startswith(request["key"]) for request in router.requests)


async def test_a_turn_cut_by_max_new_tokens_is_a_truncated_turn_not_an_error(args):
    sample = await generate(args, slime.make_sample(task=MOCK[0]), slime.SAMPLING | {"max_new_tokens": 3})
    check(sample)
    assert sample.status.value in ("completed", "truncated")


async def test_a_turn_that_a_weight_update_interrupts_goes_on_from_its_tokens(args, router):
    whole = await one(args)
    router.calm()
    router.interrupts = lambda number: number % 3 == 1
    resumed = await one(args)
    check(resumed)
    assert (resumed.tokens, resumed.loss_mask, resumed.reward) == (whole.tokens, whole.loss_mask, whole.reward)
    versions = [int(version) for version in resumed.weight_versions]
    assert versions == sorted(versions)
    assert versions[-1] < router.version, "a turn that went on over an update says the version that it began with"


async def test_an_infrastructure_fault_is_a_placeholder_that_is_not_trained_on(args, router, caplog):
    router.refuses = True
    sample = await one(args)
    assert f"of mock/base/{MOCK[0].task_id}: policy: " in caplog.text, "who trains asynchronously must find the task"
    assert (sample.status, sample.remove_sample, sample.loss_mask) == (slime.status("aborted"), True, [0])
    assert (sample.reward, len(sample.tokens), sample.rollout_log_probs) == (0.0, 2, [0.0])
    assert sample.metadata[METADATA]["fault"]["kind"] == "policy"
    evaluated = await one(args, evaluation=True)
    assert math.isnan(evaluated.reward), "slime would average a number in"


async def test_an_episode_ends_soon_after_slime_has_enough(args, router, stop):
    router.seconds = lambda prompt: 300.0
    running = asyncio.ensure_future(one(args))
    await sampling(router)
    stop.aborted = True
    began = time.monotonic()
    sample = await running
    assert time.monotonic() - began < 200.0, "slime waits for it, and not for the 300 s of the turn"
    assert (sample.status, sample.remove_sample) == (slime.status("aborted"), True)
    assert await asyncio.to_thread(router.settled), "slime puts its engines to sleep now"
    await idle()


async def test_a_cancelled_generate_ends_its_episode(args, router):
    router.seconds = lambda prompt: 30.0
    running = asyncio.ensure_future(one(args))
    await sampling(router)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await idle()


async def test_a_generate_that_is_cancelled_before_it_was_accepted_leaves_nothing_behind(args):
    running = [asyncio.ensure_future(one(args, index=i)) for i in range(8)]
    await asyncio.sleep(0.01)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await idle()


async def sampling(router: Router) -> None:
    """Wait until the engine is in the middle of a turn."""
    deadline = time.monotonic() + 120.0
    while not router.running:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def idle(seconds: float = 120.0) -> None:
    """Wait until the service plays nothing and holds no collection."""
    service = await slime_service.running(None)
    deadline = time.monotonic() + seconds
    while True:
        status = await service.client.astatus()
        if status["running"] == 0 and not status["collections"] and not slime_service._tasks._tasks:
            return
        assert time.monotonic() < deadline, status
        await asyncio.sleep(0.1)


async def test_64_episodes_at_a_time_do_not_block_slime_s_loop(args, router):
    await one(args)
    router.seconds = lambda prompt: 0.3
    worst, done, began = 0.0, asyncio.Event(), time.perf_counter()

    async def watch() -> None:
        nonlocal worst
        while not done.is_set():
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            worst = max(worst, time.perf_counter() - before - 0.01)

    watching = asyncio.ensure_future(watch())
    samples = await asyncio.gather(*(one(args, MOCK[i % 3], i) for i in range(64)))
    done.set()
    await watching
    print(f"largest lag of the loop with 64 episodes: {worst * 1000:.1f} ms")
    assert worst < (time.perf_counter() - began) / 2, "a loop that is blocked stands still all the time"
    for sample in samples:
        check(sample)
    assert {sample.reward for sample in samples} == {1.0}
    assert len({sample.metadata[METADATA]["trajectory_id"] for sample in samples}) == 64


async def test_many_samples_are_submitted_one_by_one_and_the_loop_goes_on_in_between(args, monkeypatch):
    await one(args)
    loop, submit = asyncio.get_running_loop(), RolloutClient.astream
    step, submitted = 0, []

    def count() -> None:
        nonlocal step, counting
        step, counting = step + 1, loop.call_soon(count)

    def astream(*args: Any, **kwargs: Any) -> Any:
        submitted.append(step)
        return submit(*args, **kwargs)

    counting = loop.call_soon(count)
    monkeypatch.setattr(RolloutClient, "astream", astream)
    samples = await asyncio.gather(*(one(args, MOCK[i % 3], i) for i in range(8)))
    counting.cancel()
    assert len(set(submitted)) == len(samples) == 8


async def test_the_collector_passes_over_what_was_there_when_the_service_came_up(args):
    await one(args)
    assert gc.get_freeze_count() > len(gc.get_objects())


async def test_a_sample_without_a_task_or_with_an_unknown_one_is_refused(args):
    for metadata in ({}, {"domain": "mock", "split": "base", "task_id": "nope", "index": None}):
        with pytest.raises(ConfigError, match="prepare-data"):
            await generate(args, slime.make_sample(metadata=metadata), dict(slime.SAMPLING))
    unknown = slime.make_sample(metadata={"domain": "mock", "split": "base", "task_id": "nope", "index": 0})
    with pytest.raises(TaskError, match="nope"):
        await generate(args, unknown, dict(slime.SAMPLING))


async def test_a_model_s_own_tokens_and_log_probs_arrive(args, router, tmp_path, monkeypatch):
    from deploy.engines.transformers import TransformersEngine
    from rollout_service.config import PolicyConfig
    from tests.support import tiny_model

    model = tiny_model.make(tmp_path / "tiny")  # its tokenizer is that of the service
    engine = TransformersEngine(
        PolicyConfig(engine="transformers", model=str(model), engine_arguments={"device": "cpu"})
    )
    sampled: list[tuple[int, float]] = []

    async def generate_by_model(prompt, sampling):
        generation = await engine.generate(prompt, sampling, TurnInfo())
        sampled.extend(zip(generation.token_ids.tolist(), map(float, generation.logprobs), strict=True))
        return generation

    monkeypatch.setattr(router, "engine", generate_by_model)
    try:
        sample = await generate(args, slime.make_sample(task=MOCK[0]), slime.SAMPLING | {"max_new_tokens": 16})
        response = sample.tokens[-sample.response_length :]
        kept = [(t, p) for t, p, m in zip(response, sample.rollout_log_probs, sample.loss_mask, strict=True) if m]
        assert kept == sampled
        assert all(p < 0 for _, p in kept)
    finally:
        engine.close()


# A batch -------------------------------------------------------------------------------------------------------------


def test_generate_rollout_gives_whole_groups_that_can_be_normalised(args):
    source = slime.Prompts(MOCK, 2)
    output = generate_rollout(args, 0, source)
    assert [[sample.index for sample in group] for group in output.samples] == [[0, 1], [2, 3]]
    assert source.groups == 2
    samples = flat(output.samples)
    for sample in samples:
        check(sample)
    raw, rewards = reward_post_process(args, samples)
    assert (raw, rewards) == ([1.0] * 4, [0.0] * 4)


def test_generate_rollout_asks_for_more_prompts_in_place_of_groups_that_the_filter_drops(args, monkeypatch):
    seen = []

    def keep_odd(args, group):
        seen.append(group[0].group_index)
        return group[0].group_index % 2 == 1

    monkeypatch.setattr(sys.modules[__name__], "keep_odd", keep_odd, raising=False)
    args.dynamic_sampling_filter_path = f"{__name__}.keep_odd"
    output = generate_rollout(args, 0, slime.Prompts(MOCK, 2))
    assert [group[0].group_index for group in output.samples] == [1, 3]
    assert sorted(seen) in ([0, 1, 2, 3], [0, 1, 3]), "group 2 is not waited for if group 3 comes first"
    assert output.metrics == {"rollout/dynamic_filter/drop_unnamed": len(seen) - 2}


def test_generate_rollout_evaluates_every_prompt_and_leaves_faults_out(args, router, tmp_path):
    args.eval_datasets = [slime.dataset("mock", slime.write_prompts(tmp_path / "mock.jsonl", MOCK))]
    output = generate_rollout(args, 0, None, evaluation=True)
    found = output.data["mock"]
    assert (found["rewards"], found["truncated"]) == ([1.0] * 6, [False] * 6)
    assert [sample.index for sample in found["samples"]] == list(range(6))
    assert output.metrics == {"eval/mock/unscored": 0, "eval/mock/prompts_left_out": 0}
    router.refuses = True
    with pytest.raises(ServiceError, match="No prompt of evaluation set 'mock' has a reward for each"):
        generate_rollout(args, 1, None, evaluation=True)


def test_a_prompt_of_which_an_episode_has_no_reward_is_left_out_whole(monkeypatch, tmp_path):
    """slime counts groups by position, for pass@k."""

    class Service:
        async def play(self, task: Any, seed: int, sampling: Any, n: int) -> list[Any]:
            second = "fault" if task.task_id == MOCK[1].task_id else "truncated"
            return [slime.EPISODES["completed"], slime.EPISODES[second]]

    async def running(args: Any) -> Service:
        return Service()

    monkeypatch.setattr(slime_service, "running", running)
    prompts = tmp_path / "mock.jsonl"
    rows = [{"prompt": task.task_id, "metadata": slime.make_sample(task=task).metadata} for task in MOCK]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    output = generate_rollout(slime.make_args(eval_datasets=[slime.dataset("mock", prompts)]), 0, None, evaluation=True)
    found = output.data["mock"]
    assert (found["rewards"], found["truncated"]) == ([1.0, 0.0] * 2, [False, True] * 2)
    assert [sample.prompt for sample in found["samples"]] == [MOCK[0].task_id] * 2 + [MOCK[2].task_id] * 2
    assert output.metrics == {"eval/mock/unscored": 1, "eval/mock/prompts_left_out": 1}


@pytest.mark.parametrize(
    ("fields", "evaluation", "said"),
    [
        ({"rollout_sample_hook_path": ["mine.hook"]}, False, "--rollout-sample-hook-path is"),
        ({"rollout_sample_hook_path": ["mine.hook"]}, True, "--rollout-sample-hook-path is"),
        ({"partial_rollout": True}, False, "--partial-rollout"),
    ],
)
def test_what_only_slime_s_own_rollout_does_is_refused_by_name(fields, evaluation, said):
    with pytest.raises(ConfigError, match=said):
        generate_rollout(slime.make_args(**fields), 0, slime.Prompts(MOCK, 2), evaluation)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"min_new_tokens": 8}, "min_new_tokens=8"),
        ({"repetition_penalty": 1.1}, r"repetition_penalty=1\.1"),
        ({"metadata_overrides": {"split": "test"}}, "'mock' has metadata_overrides="),
        ({"custom_generate_function_path": "mine.generate"}, "'mock' has custom_generate_function_path="),
    ],
)
def test_what_an_evaluation_set_asks_for_in_vain_is_refused_before_anything_is_played(fields, said, tmp_path):
    args = slime.make_args(eval_datasets=[slime.dataset("mock", tmp_path), slime.dataset("mock", tmp_path, **fields)])
    with pytest.raises(ConfigError, match=said):
        generate_rollout(args, 0, None, evaluation=True)


# What cannot be started ----------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch) -> None:
    """No service of this process yet; what the test starts is not kept."""
    monkeypatch.setattr(slime_service, "_starting", None)


async def test_a_router_that_cannot_be_reached_is_refused_before_anything_is_started(fresh):
    args = slime.make_args("http://127.0.0.1:1", rollout_service_set=SERVICE)
    answers = await asyncio.gather(*(one(args) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(answer, ServiceError) for answer in answers)
    assert "router at http://127.0.0.1:1 cannot be reached" in str(answers[0])


async def test_a_service_with_another_tokenizer_than_slime_s_is_refused(fresh, router, tmp_path, embedded):
    other = tmp_path / "other"
    embedded._tokenizer.save_pretrained(other)
    file = other / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(tokenizer))
    args = slime.make_args(router.url, rollout_service_set=SERVICE | {"policy.tokenizer": str(other)})
    with pytest.raises(CodecError, match="fingerprints"):
        await one(args)


async def test_history_that_is_rewritten_gives_siblings(fresh, router, load_codec, tmp_path, monkeypatch):
    forgetful = load_codec("forgetful")
    forgetful._tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(router, "engine", scripted(forgetful, MOCK))
    service = SERVICE | {"service.name": "slime-template", "policy.history": "template"}
    args = slime.make_args(router.url, hf_checkpoint=str(tmp_path), rollout_service_set=service)
    try:
        samples = await one(args, index=5)
        assert len(samples) > 1
        assert {(sample.rollout_id, sample.index, sample.reward) for sample in samples} == {(5, 5, 1.0)}
        for sample in samples:
            check(sample)
        router.refuses = True
        assert [sample.status for sample in await one(args)] == [slime.status("aborted")], "lists for every sample"
        router.refuses = False
        evaluated = await one(args, evaluation=True)
        assert evaluated.reward == 1.0, "one sample, so that the reward counts once"
    finally:
        slime_service.close()
