"""The ledger only ever appends, so what is trained is what the engine saw and sampled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.policy.base import Generation
from rollout_service.record.ledger import TokenLedger
from tests.support.trajectories import generations, make_generation, token_lists

steps = st.lists(generations() | token_lists(), max_size=6)
"""Sampled turns and runs of context, in any order."""

Step = Generation | list[int]

sampled_last = st.tuples(steps, generations()).map(lambda pair: [*pair[0], pair[1]])


many = settings(max_examples=60, deadline=None)
chains = given(prompt=token_lists(min_size=1), steps=sampled_last)


def follow(ledger: TokenLedger, step: Step) -> None:
    if isinstance(step, Generation):
        ledger.append_policy(step)
    else:
        ledger.append_context(step)


@chains
@many
def test_what_the_engine_is_sent_starts_with_what_it_saw_and_sampled(prompt: list[int], steps: list[Step]):
    ledger = TokenLedger(prompt)
    seen = prompt
    for step in steps:
        sent = ledger.input_ids().tolist()
        assert sent[: len(seen)] == seen
        follow(ledger, step)
        seen = sent + step.token_ids.tolist() if isinstance(step, Generation) else sent
    segment = ledger.to_segment()
    assert segment.token_ids.tolist() == seen
    assert segment.prompt_length == len(prompt)


@chains
@many
def test_arrays_are_aligned_and_the_mask_is_on_sampled_tokens_only(prompt: list[int], steps: list[Step]):
    ledger = TokenLedger(prompt)
    for step in steps:
        follow(ledger, step)
    segment = ledger.to_segment()
    arrays = (segment.token_ids, segment.loss_mask, segment.logprobs, segment.weight_versions)
    assert {len(array) for array in arrays} == {len(segment.token_ids)}
    assert [array.dtype for array in arrays] == [np.int32, np.uint8, np.float32, np.int32]

    expected = np.zeros(len(segment.token_ids), dtype=np.uint8)
    sampled = [step for step in steps if isinstance(step, Generation)]
    for turn, generation in zip(segment.turns, sampled, strict=True):
        span = slice(turn.start, turn.end)
        expected[span] = 1
        assert segment.token_ids[span].tolist() == generation.token_ids.tolist()
        assert segment.logprobs[span].tobytes() == generation.logprobs.tobytes()
        assert segment.weight_versions[span].tolist() == generation.weight_versions.tolist()
        assert (turn.finish_reason, turn.cached_tokens) == (generation.finish_reason, generation.cached_tokens)
    assert segment.loss_mask.tolist() == expected.tolist()
    context = expected == 0
    assert (segment.logprobs[context] == 0).all()
    assert (segment.weight_versions[context] == -1).all()


def test_context_that_the_engine_never_saw_is_left_out() -> None:
    ledger = TokenLedger([1])
    ledger.append_policy(make_generation(2))
    ledger.append_context([8, 9])
    assert len(ledger) == 5
    assert len(ledger.to_segment().token_ids) == 3


def test_a_segment_does_not_follow_the_ledger() -> None:
    ledger = TokenLedger([1])
    ledger.append_policy(make_generation(2))
    early = ledger.to_segment()
    ledger.append_policy(make_generation(3))
    assert (len(early.token_ids), len(early.turns)) == (3, 1)
    assert (len(ledger.to_segment().token_ids), len(ledger.to_segment().turns)) == (6, 2)


def test_a_segment_needs_a_prompt_and_a_turn() -> None:
    with pytest.raises(ValueError, match="prompt"):
        TokenLedger([])
    with pytest.raises(ValueError, match="turn"):
        TokenLedger([1]).to_segment()


def test_a_broken_generation_leaves_the_ledger_as_it_was() -> None:
    ledger = TokenLedger([1, 2])
    broken = make_generation(3)
    broken.logprobs = broken.logprobs[:2]
    for generation, problem in [
        (broken, "3 tokens, 2 log-probs"),
        (make_generation(0), "no token"),
        (make_generation(1, finish_reason="abort"), "'abort'"),
    ]:
        with pytest.raises(ValueError, match=problem):
            ledger.append_policy(generation)
    assert ledger.input_ids().tolist() == [1, 2]
    assert ledger.turns == []
