"""The policy behind verl's servers: what it makes of verl's answers. Whole episodes are in tests/adapters."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError, EpisodeEnd
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.policy.verl import VerlPolicy
from tests.support import episodes

PROMPT = np.arange(10, dtype=np.int32)


def ask(*answers: dict[str, Any], turn: int = 1, **sampling: Any) -> tuple[Generation, list[dict[str, Any]]]:
    """The turn that these answers make, and what was asked for each."""
    asked: list[dict[str, Any]] = []
    waiting = list(answers)

    async def generate(**request: Any) -> Any:
        asked.append(request)
        answer = {"log_probs": [-1.0] * len(waiting[0]["token_ids"]), "extra_fields": {}, "stop_reason": "completed"}
        return SimpleNamespace(**answer | waiting.pop(0))

    policy = VerlPolicy(SimpleNamespace(generate=generate), prompt_length=20)
    info = TurnInfo(episodes.task("mock"), turn=turn)
    return asyncio.run(policy.generate(PROMPT, Sampling(**sampling), "session", info)), asked


@pytest.mark.parametrize(
    ("said", "tokens", "reason"),
    [
        ("stop", 5, "stop"),  # SGLang's own words
        ("length", 5, "length"),
        ("completed", 4, "stop"),  # vLLM's, by way of verl
        ("completed", 5, "length"),
        (None, 3, "stop"),
    ],
)
def test_a_turn_ends_as_the_engine_or_its_length_says(said, tokens, reason):
    generation, _ = ask({"token_ids": list(range(tokens)), "stop_reason": said}, max_new_tokens=5)
    assert generation.finish_reason == reason
    generation.check()


def test_a_turn_that_fills_its_room_and_ends_with_a_stop_token_has_stopped():
    ids = {"token_ids": [0, 1, 2, 3, 4], "stop_reason": "completed"}
    assert ask(ids, max_new_tokens=5, stop_token_ids=(4,))[0].finish_reason == "stop"
    assert ask(ids, max_new_tokens=5, stop_token_ids=(3,))[0].finish_reason == "length"


@pytest.mark.parametrize("limit", [12, 10])
def test_a_prompt_for_which_the_servers_have_less_room_gets_it_or_ends_the_episode(limit):
    rooms = []

    async def generate(**request: Any) -> Any:
        rooms.append(request["sampling_params"]["max_tokens"])
        if len(PROMPT) + rooms[-1] > limit:
            raise ValueError(f"Prompt length (10) exceeds the model's maximum context length ({limit}).")
        return SimpleNamespace(token_ids=[1], log_probs=[-1.0], extra_fields={}, stop_reason="stop")

    policy = VerlPolicy(SimpleNamespace(generate=generate), prompt_length=20)
    info = TurnInfo(episodes.task("mock"), turn=1)
    turn = policy.generate(PROMPT, Sampling(max_new_tokens=5), "session", info)
    if limit > len(PROMPT):
        assert asyncio.run(turn).token_ids.tolist() == [1]
        assert rooms == [5, 2]
    else:
        with pytest.raises(EpisodeEnd, match="context_length"):
            asyncio.run(turn)


@pytest.mark.parametrize("word", ["abort", "aborted"])
def test_an_aborted_turn_is_asked_for_on_from_its_tokens(word):
    generation, asked = ask(
        {"token_ids": [91, 92], "stop_reason": word, "extra_fields": {"min_global_steps": 3, "max_global_steps": 3}},
        {"token_ids": [], "stop_reason": word, "log_probs": None},
        {"token_ids": [93], "extra_fields": {"min_global_steps": 4, "max_global_steps": 4}},
        max_new_tokens=8,
    )
    assert generation.token_ids.tolist() == [91, 92, 93]
    assert generation.weight_versions.tolist() == [3, 3, 4]
    assert [request["prompt_ids"] for request in asked] == [[*range(10)], [*range(10), 91, 92], [*range(10), 91, 92]]
    assert [request["sampling_params"]["max_tokens"] for request in asked] == [8, 6, 6]
    assert {request["request_id"] for request in asked} == {"session"}


def test_a_turn_over_several_versions_shows_the_oldest_and_the_newest():
    spread = {"min_global_steps": 5, "max_global_steps": 7, "num_cached_tokens": 9}
    generation, _ = ask({"token_ids": [1, 2, 3], "extra_fields": spread})
    assert generation.weight_versions.tolist() == [5, 5, 7]
    assert (generation.prompt_tokens, generation.cached_tokens) == (10, 9)


def test_a_server_that_counts_no_versions_has_version_0():
    generation, _ = ask({"token_ids": [1, 2], "extra_fields": {"min_global_steps": None, "max_global_steps": None}})
    assert generation.weight_versions.tolist() == [0, 0]


def test_what_verl_cannot_hold_or_does_not_give_is_refused():
    with pytest.raises(ValueError, match="no log-probs"):
        ask({"token_ids": [1], "log_probs": None})

    policy = VerlPolicy(None, prompt_length=9)
    info = TurnInfo(episodes.task("mock"), turn=0)
    with pytest.raises(ConfigError, match=r"mock/base/create_task_1 has 10 tokens, and rollout.prompt_length is 9"):
        asyncio.run(policy.generate(PROMPT, Sampling(), "session", info))
