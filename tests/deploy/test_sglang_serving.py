"""Two replicas of the real SGLang engine behind Ray Serve, with real τ² episodes: what a training run does to them.

The tests share one service and go on from the weights that the one before left: starting engines is what costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from rollout_service.audit.verify import verify
from rollout_service.client import RolloutClient
from rollout_service.config.sampling import Sampling
from rollout_service.errors import WeightError
from rollout_service.policy.base import RequestError, TurnInfo
from rollout_service.policy.serve import ServePolicy
from rollout_service.record.trajectory import TokenSegment
from tests.support import openai_server, sglang, tiny_model
from tests.support.reference import Reference, error, pure_error
from tests.support.services import start, wait_until

pytestmark = [pytest.mark.sglang, sglang.needed, pytest.mark.timeout(400)]

TURNS = 4
TOLERANCE = 1e-4
"""Of log-probs against Hugging Face's, both float32."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Two models of one shape, and one of another."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "first": tiny_model.make(folder / "first", seed=1),
        "second": tiny_model.make(folder / "second", seed=2),
        "wide": tiny_model.make(folder / "wide", hidden_size=32),
    }


@pytest.fixture(scope="module")
def service(cluster, models):
    user = openai_server.OpenAIServer(openai_server.talker(TURNS))
    with (
        user,
        start(
            "sglang",
            policy__engine="sglang",
            policy__model=str(models["first"]),
            policy__replicas=2,
            policy__engine_arguments=sglang.ENGINE_ARGUMENTS,
            policy__env_vars=sglang.ENVIRONMENT,
            policy__sampling={"max_new_tokens": 100},
            tasks__ids=["create_task_1", "update_task_1", "impossible_task_1"],
            user__model="openai/talker",
            user__base_url=user.base_url,
            service__slots=8,
            service__max_attempts=1,  # whatever happens to a replica, an episode needs one
        ) as client,
    ):
        yield client


def collect_while(client: RolloutClient, act, least: int = 8):
    """Trajectories of a collection in the midst of which `act` is called: turns are being sampled then, however long it
    takes. Those that ran when it returned are among them."""
    before = client.status()["finished"]
    with contextlib.closing(client.stream(1000)) as stream:
        deadline = time.monotonic() + 120
        while sum(state.running for state in client.replicas()) < 4:
            assert time.monotonic() < deadline, "no turn was sampled"
            time.sleep(0.02)
        result = act()
        status = client.status()
        number = max(least, status["finished"] - before + status["slots"])
        return result, [group[0] for group in itertools.islice(stream, number)]


def in_long_turns(act):
    """What `act` returns, and turns that are longer than those of episodes, and that begin when it is called: a segment
    each."""
    prompt = np.arange(100, 110, dtype=np.int32)
    before = np.zeros(len(prompt), dtype=np.int32)

    async def sampled() -> tuple:
        policy, how = ServePolicy("sglang-policy"), Sampling(max_new_tokens=300, ignore_eos=True)
        turns = asyncio.gather(*(policy.generate(prompt, how, f"long turn {i}", TurnInfo()) for i in range(6)))
        result = await asyncio.to_thread(act)
        return result, await turns

    result, turns = asyncio.run(sampled())
    return result, [
        TokenSegment(
            token_ids=np.concatenate([prompt, turn.token_ids]),
            loss_mask=np.concatenate([before, np.ones_like(turn.token_ids)]).astype(np.uint8),
            logprobs=np.concatenate([before.astype(np.float32), turn.logprobs]),
            weight_versions=np.concatenate([before - 1, turn.weight_versions]),
            prompt_length=len(prompt),
            turns=[],
        )
        for turn in turns
    ]


def engine_processes() -> list[tuple[psutil.Process, str]]:
    """Processes that the service's engines started, with their titles. Other servers may run on this machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found.append((process, " ".join(process.cmdline()).strip()))
    return [(process, title) for process, title in found if title.startswith("sglang::")]


def see_that_all_is_exact(trajectories, versions: dict[int, Reference]) -> None:
    assert [t.fault for t in trajectories if t.fault is not None] == []
    assert {t.outcome for t in trajectories} == {"completed"}
    assert [str(violation) for _, found in verify(trajectories) for violation in found] == []
    assert max(error(segment, versions) for t in trajectories for segment in t.segments) < TOLERANCE


def spans(trajectory) -> list[int]:
    """The versions that sampled the trajectory's tokens, in order."""
    segment = trajectory.segments[0]
    sampled = segment.weight_versions[segment.loss_mask == 1]
    return sampled[np.append(True, np.diff(sampled) != 0)].tolist()


def test_logprobs_are_hugging_faces_and_every_turn_finds_the_one_before_in_its_replicas_cache(service, models):
    trajectories = service.collect(8, progress=False)
    see_that_all_is_exact(trajectories, {0: Reference(str(models["first"]))})
    assert {len(t.turns) for t in trajectories} == {TURNS}
    for trajectory in trajectories:
        for before, turn in zip(trajectory.turns, trajectory.turns[1:], strict=False):
            assert turn.cached_tokens >= before.end - 1, "another replica would know the opening at most"
        assert all(0 <= turn.queue_seconds <= turn.policy_seconds for turn in trajectory.turns)
    status = service.status()
    share = sum(t.cached_token_count for t in trajectories) / sum(t.prompt_token_count for t in trajectories)
    assert status["cached_tokens"] / status["prompt_tokens"] == pytest.approx(share)

    def full() -> list:
        return [state.occupancy for state in service.replicas()]

    assert all(0 < each.cache_hits < 1 for each in full())
    caches = [each.cache for each in full()]
    assert {each.capacity for each in caches} == {sglang.ENGINE_ARGUMENTS["max_total_tokens"]}
    assert sum(each.later_turns for each in caches) == 8 * (TURNS - 1)
    assert sum(each.recomputed_tokens for each in caches) == 0, "all of it fits"
    longest = max(len(t.segments[0].token_ids) for t in trajectories)
    assert all(0 <= each.shared_tokens < each.context_tokens < longest for each in caches)
    assert all(0 <= each.fixed_share <= 1 for each in caches)
    wait_until(lambda: all((each.waiting, each.kv_use) == (0, 0) for each in full()))  # nothing runs any more


def test_an_engine_has_a_scheduler_and_no_detokenizer(service):
    assert [title for _, title in engine_processes()] == ["sglang::scheduler"] * 2


def test_sessions_are_spread_evenly_and_stay(service):
    policy = ServePolicy("sglang-policy")

    async def served() -> list[list[int]]:
        """Cached tokens of each session's three turns."""
        generator = np.random.default_rng(0)
        prompts = [generator.integers(10, 4000, 300, dtype=np.int32) for _ in range(10)]
        cached: list[list[int]] = [[] for _ in prompts]
        for _ in range(3):
            calls = [policy.generate(p, Sampling(max_new_tokens=4), f"s{i}", TurnInfo()) for i, p in enumerate(prompts)]
            for i, generation in enumerate(await asyncio.gather(*calls)):
                cached[i].append(generation.cached_tokens)
                prompts[i] = np.concatenate([prompts[i], generation.token_ids])
        return cached

    assert all(first == 0 and second >= 299 and third > second for first, second, third in asyncio.run(served()))


def test_requests_that_would_end_an_engine_are_refused_and_cost_no_other_turn_anything(service):
    policy = ServePolicy("sglang-policy", retry_seconds=60)
    before = sorted(state.replica for state in service.replicas())

    async def asked() -> list:
        whole = [
            policy.generate(
                np.arange(100, 150, dtype=np.int32), Sampling(max_new_tokens=200, ignore_eos=True), f"w{i}", TurnInfo()
            )
            for i in range(8)
        ]
        ids = [[100, 4096], [2**31 - 1], [-1], [100]]
        stops: list[tuple[int, ...]] = [(), (), (), (2**31 - 1,)]
        bad = [
            policy.generate(np.array(prompt, dtype=np.int32), Sampling(stop_token_ids=stop), f"b{i}", TurnInfo())
            for i, (prompt, stop) in enumerate(zip(ids, stops, strict=True))
        ]
        widest = Sampling(temperature=1e6, top_p=1.0, top_k=2**31 - 1, max_new_tokens=20, ignore_eos=True)
        narrowest = Sampling(temperature=1e-6, top_p=1e-6, top_k=1, max_new_tokens=20, ignore_eos=True)
        edges = [policy.generate(np.array([100], np.int32), how, "e", TurnInfo()) for how in (widest, narrowest)]
        return await asyncio.gather(*whole, *edges, *bad, return_exceptions=True)

    answers = asyncio.run(asked())
    assert [len(turn.token_ids) for turn in answers[:8]] == [200] * 8
    for turn in answers[8:10]:
        turn.check()
        assert len(turn.token_ids) == 20
    for refusal in answers[10:]:
        assert isinstance(refusal, RequestError)
        assert "the model's ids are 0 to 4095" in str(refusal)
    assert sorted(state.replica for state in service.replicas()) == before


def update_under_turns(service: RolloutClient, folders: list[str], mode: str) -> list:
    """Updates to the other one of two checkpoints, of which version 0 is the first. Returns the versions of the tokens
    of each turn that has more than one."""
    version = service.weight_version()
    old, new = folders[version % 2], folders[(version + 1) % 2]
    update = functools.partial(service.update_weights, new, mode=mode)
    (report, long_turns), trajectories = collect_while(service, lambda: in_long_turns(update))
    assert report.version == version + 1
    assert report.lost == []
    assert [state.version for state in report.replicas] == [version + 1] * 2
    served = {version: Reference(old), version + 1: Reference(new)}
    see_that_all_is_exact(trajectories, served)
    assert max(error(segment, served) for segment in long_turns) < TOLERANCE
    assert [version, version + 1] in [spans(t) for t in trajectories]
    versions = [segment.weight_versions[segment.loss_mask == 1] for segment in long_turns]
    versions += [t.segments[0].weight_versions[turn.start : turn.end] for t in trajectories for turn in t.turns]
    return [found for found in versions if len(set(found.tolist())) > 1]


def test_a_checkpoint_reaches_every_replica_and_each_token_has_its_own_weights(service, models):
    folders = [str(models["first"]), str(models["second"])]
    assert update_under_turns(service, folders, "drain") == [], "drained turns are of one version"
    # On a busy machine all turns may have ended just before the update, or none may have a token yet.
    updates = (update_under_turns(service, folders, "abort_and_resume") for _ in range(10))
    assert any(updates), "resumed turns are of two versions"


def test_in_place_weights_change_under_running_turns_that_never_stop(service, models):
    service.update_weights(str(models["first"]), version=19)
    weights = Reference(str(models["second"])).state()
    report, trajectories = collect_while(service, lambda: service.update_weights(weights, mode="in_place", version=20))
    assert report.version == service.weight_version() == 20
    see_that_all_is_exact(trajectories, {})  # what the old weights left in the cache is part of each new log-prob
    assert [19, 20] in [spans(t) for t in trajectories]
    served = {19: Reference(str(models["first"])), 20: Reference(str(models["second"]))}
    assert max(pure_error(segment, served) for t in trajectories for segment in t.segments) < TOLERANCE
    assert {t.oldest_version for t in trajectories if spans(t) == [19, 20]} == {19}
    # Episodes that begin now share the prompt that the old weights read, and reuse nothing of it.
    later = service.collect(8, progress=False)
    see_that_all_is_exact(later, served)
    assert {turn.prefix_version for t in later for turn in t.turns} == {20}
    assert any(t.turns[0].cached_tokens for t in later), "they share what the new weights read"
    # With a cache of their own weights only, the log-probs are theirs again: the very same, although sent otherwise.
    service.update_weights(weights, version=21)
    see_that_all_is_exact(service.collect(4, progress=False), {21: Reference(str(models["second"]))})


def test_tensors_arrive_through_a_process_group_with_the_trainer_as_rank_0(service, models):
    reference = Reference(str(models["second"]), {"model.norm.weight": torch.full((64,), 0.7)})
    with service.weight_group("gloo") as group:
        report, trajectories = collect_while(service, lambda: service.update_weights(reference.state(), group=group))
    assert report.version == 22
    see_that_all_is_exact(trajectories, {21: Reference(str(models["second"])), 22: reference})
    assert any(spans(t) == [21, 22] for t in trajectories)


def test_paused_replicas_sample_nothing_until_they_are_resumed(service):
    def pause() -> list:
        service.pause()
        before = service.status()["finished"]
        time.sleep(1.0)
        states = service.replicas()
        assert service.status()["finished"] - before <= 1, "at most one that was past its last turn"
        service.resume()
        return states

    states, trajectories = collect_while(service, pause)
    assert [(state.paused, state.running) for state in states] == [(True, 0)] * 2
    assert [t.fault for t in trajectories if t.fault is not None] == []


@pytest.mark.parametrize(
    ("weights", "version", "message"),
    [
        ("wide", 50, r"\[4096, 32\] in the new weights and \[4096, 64\] in the model"),
        ("nowhere", 50, "no folder"),
        ("first", 3, "version 3 is not newer than 22"),
        ({"model.norm.weight": torch.zeros(3)}, 50, r"model.norm.weight is \[3\]"),
        ({"model.nose.weight": torch.zeros(3)}, 50, "model.nose.weight, which the model has not"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_changes(service, models, weights, version, message):
    given = str(models.get(weights, weights)) if isinstance(weights, str) else weights
    with pytest.raises(WeightError, match=message):
        service.update_weights(given, version=version)
    assert service.weight_version() == 22
    assert [state.version for state in service.replicas()] == [22, 22]


def test_an_update_while_another_runs_is_refused(service, models):
    async def both():
        first, second = str(models["first"]), str(models["second"])
        return await asyncio.gather(
            service.aupdate_weights(first, version=23),
            service.aupdate_weights(second, version=24),
            return_exceptions=True,
        )

    results = asyncio.run(both())
    refused = [r for r in results if isinstance(r, WeightError)]
    assert len(refused) == 1
    assert "is still under way" in str(refused[0])


def test_updates_that_follow_one_another_lose_no_replica_and_no_turn(service, models):
    folders = [str(models["first"]), str(models["second"])]
    version = service.update_weights(folders[0]).version
    references = [Reference(folder) for folder in folders]
    served = {version + i: references[i % 2] for i in range(5)}

    def update() -> list:
        return [service.update_weights(folders[i % 2], version=version + i) for i in range(1, 5)]

    reports, trajectories = collect_while(service, update, least=16)
    assert [report.lost for report in reports] == [[]] * 4
    see_that_all_is_exact(trajectories, served)


def test_an_engine_that_is_killed_in_mid_turn_costs_no_episode_and_its_successor_has_the_newest_weights(
    service, models
):
    version = service.weight_version() + 1
    service.update_weights(str(models["second"]), version=version)
    reference = Reference(str(models["second"]))
    victim = next(process for process, title in engine_processes() if title == "sglang::scheduler")
    _, trajectories = collect_while(service, lambda: os.kill(victim.pid, 9))
    see_that_all_is_exact(trajectories, {version: reference})
    assert {t.attempt for t in trajectories} == {1}
    deadline = time.monotonic() + 300
    while len(service.replicas()) < 2:
        assert time.monotonic() < deadline, "the replica was not replaced"
        time.sleep(0.5)
    assert [state.version for state in service.replicas()] == [version] * 2
    see_that_all_is_exact(service.collect(4, progress=False), {version: reference})
