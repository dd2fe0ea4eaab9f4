"""A turn that is interrupted wherever one likes is the turn that it would have been."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rollout_service.config.sampling import Sampling
from rollout_service.policy import resume
from rollout_service.policy.base import Generation
from rollout_service.policy.resume import ended_by, joined, resumed

STOP = 0


class FakeEngine:
    """What it samples follows from the tokens so far and from nothing else, so it goes on where it was interrupted.

    `cuts`: how many tokens each call may sample before it is interrupted; the calls after them are left alone. The
    weights have a new version after each interruption.
    """

    def __init__(self, cuts: list[int], words: int = 8) -> None:
        self.version = 5
        self.prompts: list[list[int]] = []
        self.samplings: list[Sampling] = []
        self.parts: list[Generation] = []
        self._cuts = iter(cuts)
        self._words = words

    async def __call__(self, input_ids, sampling: Sampling) -> Generation:
        assert input_ids.dtype == np.int32
        self.prompts.append(input_ids.tolist())
        self.samplings.append(sampling)
        so_far, cut = input_ids.tolist(), next(self._cuts, None)
        tokens: list[int] = []
        logprobs: list[float] = []
        finish = "length"
        while True:
            if len(tokens) == cut:  # before the stop, as SGLang does
                finish = "abort"
            elif tokens and tokens[-1] == STOP:
                finish = "stop"
            elif len(tokens) < sampling.max_new_tokens:
                mixed = sum((i + 1) * token for i, token in enumerate(so_far)) * 31 + len(so_far)
                tokens.append(mixed % self._words)
                logprobs.append(-(mixed % 997) / 64)
                so_far.append(tokens[-1])
                continue
            break
        self.parts.append(
            Generation(
                token_ids=np.asarray(tokens, dtype=np.int32),
                logprobs=np.asarray(logprobs, dtype=np.float32),
                weight_versions=np.full(len(tokens), self.version, dtype=np.int32),
                finish_reason=finish,
                prompt_tokens=len(input_ids),
                cached_tokens=len(input_ids) // 2 + 7 * len(self.parts),
            )
        )
        if finish == "abort":
            self.version += 1
        return self.parts[-1]


@pytest.fixture
def no_wait(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(resume, "_EMPTY_WAIT_SECONDS", 0)


def turn(engine: FakeEngine, prompt: list[int], limit: int, **sampling) -> Generation:
    how = Sampling(max_new_tokens=limit, stop_token_ids=(STOP,), **sampling)
    return asyncio.run(resumed(engine, np.asarray(prompt, dtype=np.int32), how))


@given(
    prompt=st.lists(st.integers(0, 1000), min_size=1, max_size=5),
    limit=st.integers(1, 12),
    cuts=st.lists(st.integers(0, 6), max_size=6),
    words=st.sampled_from([3, 8, 1000]),
)
@example(prompt=[1], limit=3, cuts=[0, 0, 0], words=1000)
@example(prompt=[1], limit=3, cuts=[3], words=1000).via("interrupted after the last token that it may sample")
@example(prompt=[1], limit=4, cuts=[1, 3], words=1000).via("the same, in a later part")
@example(prompt=[1], limit=4, cuts=[2, 0, 2], words=1000).via("the same, after a part without a token")
@example(prompt=[1], limit=12, cuts=[1], words=8).via("interrupted in the step that samples the end of the turn")
@settings(max_examples=200, deadline=None)
def test_an_interrupted_turn_equals_the_uninterrupted_one(prompt, limit, cuts, words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "_EMPTY_WAIT_SECONDS", 0)
        engine, alone = FakeEngine(cuts, words), FakeEngine([], words)
        got, whole = turn(engine, prompt, limit, temperature=0.5, top_p=0.9), turn(alone, prompt, limit)
    got.check()
    assert got.token_ids.tolist() == whole.token_ids.tolist()
    assert got.logprobs.tolist() == whole.logprobs.tolist()
    assert got.finish_reason == whole.finish_reason
    assert (got.token_ids.dtype, got.logprobs.dtype, got.weight_versions.dtype) == (np.int32, np.float32, np.int32)
    assert got.weight_versions.tolist() == [version for part in engine.parts for version in part.weight_versions]
    assert len(engine.parts) == 1 or got.weight_versions[-1] == engine.parts[-1].weight_versions[-1]
    first = next((part for part in engine.parts if len(part.token_ids)), engine.parts[0])
    assert (got.prompt_tokens, got.cached_tokens) == (len(prompt), first.cached_tokens)
    sampled = 0
    for asked, how, part in zip(engine.prompts, engine.samplings, engine.parts, strict=True):
        assert asked == prompt + whole.token_ids.tolist()[:sampled], "what was sampled is the prompt of the next"
        assert how == Sampling(max_new_tokens=limit - sampled, temperature=0.5, top_p=0.9, stop_token_ids=(STOP,))
        sampled += len(part.token_ids)
    assert sampled <= limit


def test_a_turn_that_nothing_interrupts_is_what_the_engine_gave():
    engine = FakeEngine([])
    assert turn(engine, [1, 2], 5) is engine.parts[0]


@pytest.mark.usefixtures("no_wait")
def test_each_part_keeps_its_version_and_the_turn_counts_the_first_part_s_prompt_and_cache():
    engine = FakeEngine([2, 0, 1], words=1000)
    got = turn(engine, [7, 8, 9], 6)
    assert got.weight_versions.tolist() == [5, 5, 7, 8, 8, 8]
    assert (got.prompt_tokens, got.cached_tokens) == (3, 1)
    assert [how.max_new_tokens for how in engine.samplings] == [6, 4, 4, 3]


def test_a_turn_that_is_interrupted_after_its_last_token_ended_by_length_and_the_engine_is_not_asked_again():
    engine = FakeEngine([2, 2], words=1000)
    got = turn(engine, [1], 4)
    assert (got.finish_reason, len(got.token_ids), len(engine.parts)) == ("length", 4, 2)
    assert engine.parts[-1].finish_reason == "abort", "the engine's own answer is not changed"


def test_it_waits_before_it_asks_again_after_a_part_without_a_token_and_after_no_other(monkeypatch):
    engine, asked_when_it_waited, pause = FakeEngine([1, 0, 0, 1], words=1000), [], asyncio.sleep

    async def sleep(seconds):
        assert 0 < seconds < 1
        asked_when_it_waited.append(len(engine.parts))
        await pause(0)

    monkeypatch.setattr(resume, "asyncio", SimpleNamespace(sleep=sleep))
    turn(engine, [1], 4)
    assert asked_when_it_waited == [2, 3]


async def test_the_caller_s_prompt_stays_as_it_is():
    prompt = np.asarray([1, 2, 3], dtype=np.int32)
    await resumed(FakeEngine([1, 1], words=1000), prompt, Sampling(max_new_tokens=4))
    assert prompt.tolist() == [1, 2, 3]


async def test_an_error_of_a_later_part_is_the_turn_s():
    engine = FakeEngine([1], words=1000)

    async def sample(prompt, how):
        if engine.parts:
            raise ConnectionError("the replica is gone")
        return await engine(prompt, how)

    with pytest.raises(ConnectionError, match="the replica is gone"):
        await resumed(sample, np.asarray([1], dtype=np.int32), Sampling(max_new_tokens=4))


async def test_a_turn_that_waits_after_an_empty_part_can_be_cancelled():
    engine = FakeEngine([0] * 1000)
    task = asyncio.create_task(resumed(engine, np.asarray([1], dtype=np.int32), Sampling(max_new_tokens=4)))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(engine.parts) == 1


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_joined_parts_are_their_concatenation_and_end_as_the_last_one_does(lengths):
    parts, start = [], 0
    for version, length in enumerate(lengths):
        ids = np.arange(start, start + length, dtype=np.int32)
        parts.append(
            Generation(ids, -ids.astype(np.float32), np.full(length, version, np.int32), f"part {version}", 10, version)
        )
        start += length
    turn = joined(parts)
    assert turn.token_ids.tolist() == list(range(start))
    assert turn.logprobs.tolist() == [-i for i in range(start)]
    assert turn.weight_versions.tolist() == [version for version, length in enumerate(lengths) for _ in range(length)]
    first = next((version for version, length in enumerate(lengths) if length), 0)
    assert (turn.finish_reason, turn.prompt_tokens, turn.cached_tokens) == (parts[-1].finish_reason, 10, first)


def test_what_follows_the_end_of_an_interrupted_turn_is_dropped_and_a_whole_turn_is_left_alone():
    ids = np.asarray([4, STOP, 6], dtype=np.int32)
    part = Generation(ids, -ids.astype(np.float32), ids, "abort", 10, 2)
    ended = ended_by(part, [STOP])
    assert (ended.token_ids.tolist(), ended.finish_reason, ended.cached_tokens) == ([4, STOP], "stop", 2)
    ended.check()
    assert ended_by(part, []) is part
    whole = Generation(ids, -ids.astype(np.float32), ids, "length", 10, 2)
    assert ended_by(whole, [STOP]) is whole


def test_a_turn_that_goes_on_with_newer_weights_was_computed_over_those_of_its_beginning():
    def part(version: int, tokens: int) -> Generation:
        ids = np.zeros(tokens, dtype=np.int32)
        return Generation(
            ids, ids.astype(np.float32), ids + version, "abort", prefix_version=version if tokens else None
        )

    assert joined([part(1, 0), part(2, 3), part(4, 2)]).prefix_version == 2
    assert joined([part(3, 2)]).prefix_version == 3


def test_a_turn_waited_as_long_as_its_parts_together_if_each_says_how_long():
    def part(queue_seconds: float | None) -> Generation:
        ids = np.ones(1, dtype=np.int32)
        return Generation(ids, -ids.astype(np.float32), ids, "abort", queue_seconds=queue_seconds)

    assert joined([part(0.5), part(0.0), part(2.0)]).queue_seconds == 2.5
    assert joined([part(0.5), part(None)]).queue_seconds is None
