"""Whole episodes on an endpoint of others that has a context of its own, or that takes off what ends a turn."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import rollout_service.preflight as preflight
from rollout_service.audit.verify import verify
from rollout_service.chat.codec import EMBEDDED_TOKENIZER
from rollout_service.cli import report
from rollout_service.errors import ConfigError, FaultKind
from rollout_service.policy.base import Generation
from rollout_service.policy.sglang_http import SglangHttpPolicy
from rollout_service.record.statistics import summarize
from rollout_service.record.trajectory import Trajectory
from tests.support import episodes
from tests.support.slime_router import Router, scripted


@pytest.fixture(scope="module")
def router() -> Iterator[Router]:
    with Router(scripted(episodes.codec(), [episodes.task("retail")])) as server:
        yield server


@pytest.fixture(autouse=True)
def calm(router: Router) -> None:
    router.calm()


def play(router: Router, **settings: Any) -> Trajectory:
    """One episode over HTTP, as an environment actor plays it."""
    config = episodes.settings(
        policy__engine="http",
        policy__url=router.url,
        policy__tokenizer="./rollout_service/assets/tokenizer",
        **settings,
    )
    policy = SglangHttpPolicy(router.url, retry_seconds=1.0)
    try:
        return episodes.runner(config, policy).run(episodes.request(episodes.task("retail")))
    finally:
        asyncio.run_coroutine_threadsafe(policy.aclose(), episodes.event_loop()).result(120)


@pytest.fixture(scope="module")
def whole(router: Router) -> int:
    """Tokens of the episode where nothing is too long."""
    trajectory = play(router)
    assert (trajectory.outcome, trajectory.reward) == ("completed", 1.0)
    return len(trajectory.segments[0].token_ids)


@pytest.mark.parametrize("configured", [False, True], ids=["the server alone knows", "configured"])
def test_an_episode_that_outgrows_the_server_is_truncated_and_scored_not_lost(router, whole, configured):
    router.limit = whole - 600
    trajectory = play(router, **({"policy__context_length": router.limit} if configured else {}))
    assert (trajectory.outcome, trajectory.termination_reason) == ("truncated", "context_length")
    assert (trajectory.reward, trajectory.fault) == (0.0, None)
    assert len(trajectory.turns) > 1
    assert [str(violation) for _, found in verify([trajectory]) for violation in found] == []


@pytest.mark.parametrize("context", [None, "the server's", "more than the server's"])
def test_an_episode_that_fits_is_not_lost_to_prompt_and_room_counted_together(router, whole, context):
    router.limit = whole + 10
    chosen = {None: {}, "the server's": router.limit, "more than the server's": router.limit + 5000}[context]
    trajectory = play(router, **({"policy__context_length": chosen} if chosen else {}))
    assert (trajectory.outcome, trajectory.reward, trajectory.fault) == ("completed", 1.0, None)
    assert len(trajectory.segments[0].token_ids) == whole


def test_a_server_that_takes_the_stop_token_off_is_refused_with_the_remedy(router):
    router.strips = True
    trajectory = play(router)
    assert trajectory.reward is None
    fault = trajectory.fault
    assert (fault.kind, fault.error, fault.retryable) == (FaultKind.POLICY, "StopTokenMissing", False)
    for word in ("no_stop_trim", "include_stop_str_in_output", "policy.sampling.stop_token_ids"):
        assert word in fault.message
    assert trajectory.segments == [], "nothing is recorded of which the end would be a guess"
    assert all(request["sampling_params"]["no_stop_trim"] is True for request in router.requests)


def test_the_service_asks_the_endpoint_before_it_starts_anything_or_demands_the_setting(router):
    config = episodes.settings(
        policy__engine="http",
        policy__url=router.url,
        policy__tokenizer="./rollout_service/assets/tokenizer",
        tasks__domain="mock",
    )
    with pytest.raises(ConfigError, match=r"policy\.context_length is not set.*does not say"):
        preflight.check(config)
    router.limit = 4321
    assert preflight.check(config).policy.context_length == 4321, "what every actor is given"


class OneTurn:
    """A policy whose first turn has these tokens, whatever it is asked."""

    def __init__(self, token_ids: list[int], reason: str = "stop") -> None:
        self.ids, self.reason = np.asarray(token_ids, np.int32), reason

    async def generate(self, *_: Any) -> Generation:
        n = len(self.ids)
        return Generation(self.ids, np.full(n, -0.5, np.float32), np.zeros(n, np.int32), self.reason)


def first_turn(token_ids: list[int], reason: str = "stop", **settings: Any) -> Trajectory:
    config = episodes.settings(limits__max_turns=1, **settings)
    return episodes.runner(config, OneTurn(token_ids, reason)).run(episodes.request(episodes.task("mock")))


def test_whatever_the_way_to_the_engine_a_turn_that_stopped_ends_with_a_stop_token():
    codec = episodes.codec()
    written = codec.encode_turn("Hello.", [("get_users", {})])
    other_end = codec.control.id("<|endoftext|>")
    for token_ids, settings, is_fault in (
        (written, {}, False),
        (written[:-1], {}, True),
        (codec.encode_turn("Hello.")[:-1], {}, True),
        ([], {}, True),
        ([*written[:-1], other_end], {}, False),  # the model's own end, though not the template's
        (written[:-1], {"policy__sampling": {"stop_token_ids": [written[-2]]}}, False),
    ):
        fault = first_turn(token_ids, **settings).fault
        assert (fault is not None and fault.error == "StopTokenMissing") is is_fault, codec.decode(token_ids)
    assert first_turn(written[:-1], "length").fault is None, "cut by length: it has no end"


ROWS = 4160
"""Of a model whose tokenizer has 4,096 ids: the others only pad it."""


@pytest.fixture(scope="module")
def padded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the tokenizer and the configuration of such a model."""
    folder = tmp_path_factory.mktemp("padded")
    shutil.copytree(EMBEDDED_TOKENIZER, folder, dirs_exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", "vocab_size": ROWS}))
    return str(folder)


def sampled(ids: list[int], tokenizer: str) -> Trajectory:
    """An episode whose first turn has these ids before its text."""
    endpoint = {"policy__engine": "http", "policy__url": "http://there", "policy__tokenizer": tokenizer}
    return first_turn([*ids, *episodes.codec().encode_turn("Hello.")], policy__context_length=20_000, **endpoint)


def test_an_id_that_only_a_padding_row_of_the_model_has_is_counted_and_is_no_text(padded):
    trajectory = sampled([4096, ROWS - 1], padded)
    assert (trajectory.fault, trajectory.turns[0].unknown_tokens, trajectory.unknown_token_count) == (None, 2, 2)
    assert (trajectory.provenance.tokenizer_size, trajectory.provenance.model_vocabulary_size) == (4096, ROWS)
    assert [m["content"] for m in trajectory.messages if m["role"] == "assistant"][-1] == "Hello."
    assert trajectory.segments[0].token_ids.max() == ROWS - 1, "what was sampled is what is recorded"
    summary = summarize([trajectory, sampled([], padded)])
    assert summary.unknown_tokens == 2
    assert ("policy tokens", f"{summary.policy_tokens} sampled, 2 of them no token of the tokenizer's") in list(
        report._totals(summary, 1.0)
    )


@pytest.mark.parametrize("number", [ROWS, 151_900, -1])
def test_an_id_that_the_model_cannot_have_is_a_fault_that_is_not_tried_again(padded, number):
    fault = sampled([number], padded).fault
    assert (fault.kind, fault.error, fault.retryable) == (FaultKind.POLICY, "IdOutsideVocabulary", False)
    assert f"the id {number}, but the model's ids are 0 to {ROWS - 1}" in fault.message


def test_where_nothing_says_how_many_rows_the_model_has_only_the_tokenizer_is_known():
    trajectory = sampled([151_900], str(EMBEDDED_TOKENIZER))
    assert (trajectory.fault, trajectory.unknown_token_count) == (None, 1)
    assert trajectory.provenance.model_vocabulary_size is None
    assert sampled([-1], str(EMBEDDED_TOKENIZER)).fault.error == "IdOutsideVocabulary"
