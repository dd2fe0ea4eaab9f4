"""A turn that an engine calls too long gets the room that there is, or ends the episode; no other refusal does."""

from __future__ import annotations

import numpy as np
import pytest
from ray.exceptions import RayTaskError

from rollout_service.config.sampling import Sampling
from rollout_service.errors import EpisodeEnd
from rollout_service.policy.base import Generation
from rollout_service.policy.overlong import fitted, said_limit

TOO_LONG = {
    "SGLang, the prompt": (
        "http://h answered 400 Bad Request: "
        '{"error":{"message":"The input (9000 tokens) is longer than the model\'s context length (8192 tokens)."}}',
        8192,
    ),
    "SGLang, prompt and turn": (
        "Requested token count exceeds the model's maximum context length of 8192 tokens. You requested a total of "
        "9048 tokens: 7000 tokens from the input messages and 2048 tokens for the completion. Please reduce the number "
        "of tokens in the input messages or the completion to fit within the limit.",
        8192,
    ),
    "SGLang's scheduler": (
        "the engine refused the request: Input length (9000 tokens) exceeds the maximum allowed length (8186 tokens). "
        "Use a shorter input or enable --allow-auto-truncate.",
        8186,
    ),
    "vLLM, prompt and turn": (
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in the messages, "
        "1000 in the completion). Please reduce the length of the messages or completion.",
        4096,
    ),
    "vLLM, the turn": (
        "'max_tokens' or 'max_completion_tokens' is too large: 1000. This model's maximum context length is 4096 "
        "tokens and your request has 4000 input tokens (1000 > 4096 - 4000).",
        4096,
    ),
    "vLLM, the prompt": (
        "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that "
        "`max_model_len` is no smaller than the number of text tokens.",
        4096,
    ),
    "verl": ("Prompt length (9000) exceeds the model's maximum context length (8192).", 8192),
    "text-generation-inference": (
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 4000 `inputs` tokens and "
        "1000 `max_new_tokens`",
        4096,
    ),
    "the engine here": ("4000 input_ids and max_new_tokens of 500 are more than the context of 4096 tokens", 4096),
    "an API's code": ('{"error": {"code": "context_length_exceeded", "message": "too much"}}', 0),
    "llama.cpp": ("the request exceeds the available context size, try increasing it", 0),
    "without a number": ("Input is too long for the requested model context", 0),
}
OTHERS = [
    "input_ids must be ids from 0 to 4095, one at least",
    "sampling_params.temperature: Input should be greater than or equal to 0",
    "the engine's answer lacks 'meta_info': is it SGLang's /generate, with return_logprob?",
    "http://h answered 500 Internal Server Error: context manager failed",
    "http://h answered 500 Internal Server Error: (Client.Timeout exceeded while awaiting headers): context deadline "
    "exceeded",
    "the quota was exceeded in this namespace's context",
    "stop_token_ids exceeds the limit of 64",
    "The model qwen does not exist.",
]


@pytest.mark.parametrize(("message", "limit"), TOO_LONG.values(), ids=TOO_LONG)
def test_every_server_s_word_for_too_long_is_known_with_its_limit(message: str, limit: int):
    assert said_limit(message) == limit


@pytest.mark.parametrize("message", OTHERS)
def test_another_refusal_is_none(message: str):
    assert said_limit(message) is None


class Engine:
    """Takes `limit` tokens, and refuses what is longer in the words of SGLang's tokenizer manager."""

    def __init__(self, limit: int, prompt: int) -> None:
        self.limit, self.prompt = limit, prompt
        self.rooms: list[int] = []

    async def __call__(self, sampling: Sampling) -> Generation:
        self.rooms.append(sampling.max_new_tokens)
        if self.prompt >= self.limit:
            raise ValueError(f"The input is longer than the model's context length ({self.limit} tokens).")
        if self.prompt + sampling.max_new_tokens > self.limit:
            raise ValueError(
                f"Requested token count exceeds the model's maximum context length of {self.limit} tokens."
            )
        n = sampling.max_new_tokens
        return Generation(np.zeros(n, np.int32), np.zeros(n, np.float32), np.zeros(n, np.int32), "length")


async def test_a_prompt_that_fits_gets_the_room_that_is_left():
    engine = Engine(limit=100, prompt=90)
    turn = await fitted(engine, Sampling(max_new_tokens=64), 90)
    assert engine.rooms == [64, 10]
    assert len(turn.token_ids) == 10


@pytest.mark.parametrize("prompt", [100, 101, 5000])
async def test_a_prompt_without_room_ends_the_episode_and_is_not_sent_again(prompt: int):
    engine = Engine(limit=100, prompt=prompt)
    with pytest.raises(EpisodeEnd) as ended:
        await fitted(engine, Sampling(max_new_tokens=64), prompt)
    assert ended.value.reason == "context_length"
    assert engine.rooms == [64]


async def test_a_server_that_says_another_limit_each_time_ends_the_episode():
    limits = iter([100, 95])

    async def ask(sampling: Sampling) -> Generation:
        raise ValueError(f"maximum context length of {next(limits)} tokens")

    with pytest.raises(EpisodeEnd, match="context_length"):
        await fitted(ask, Sampling(max_new_tokens=64), 90)


async def test_what_an_engine_in_another_process_says_is_found_in_ray_s_error():
    refusals = iter(["4000 input_ids and max_new_tokens of 500 are more than the context of 4096 tokens"])

    async def ask(sampling: Sampling) -> Generation:
        for message in refusals:
            cause = ValueError(message)
            raise RayTaskError("generate", "a traceback", cause).as_instanceof_cause()
        n = sampling.max_new_tokens
        return Generation(np.zeros(n, np.int32), np.zeros(n, np.float32), np.zeros(n, np.int32), "length")

    assert len((await fitted(ask, Sampling(max_new_tokens=500), 4000)).token_ids) == 96


async def test_any_other_refusal_passes_as_it_is():
    async def ask(sampling: Sampling) -> Generation:
        raise ValueError("no such id")

    with pytest.raises(ValueError, match="no such id"):
        await fitted(ask, Sampling(), 90)
