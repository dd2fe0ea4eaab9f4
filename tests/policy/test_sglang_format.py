"""SGLang's format both ways: what goes out comes in again, and what cannot be right is refused with the reason."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.config.sampling import Sampling
from rollout_service.policy.base import Generation
from rollout_service.policy.sglang_format import from_answer, sampling_params, to_answer, to_payload

TOKEN = st.integers(0, 2**31 - 1)
LOGPROB = st.floats(-3e38, 0)


@st.composite
def generations(draw) -> Generation:
    drawn = draw(st.lists(st.tuples(TOKEN, LOGPROB, st.integers(0, 3)), max_size=12))
    versions = (draw(st.integers(0, 10**6)) + np.cumsum([rise for _, _, rise in drawn])).astype(np.int32)
    return Generation(
        token_ids=np.asarray([token for token, _, _ in drawn], dtype=np.int32),
        logprobs=np.asarray([logprob for _, logprob, _ in drawn], dtype=np.float32),
        weight_versions=versions,
        finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
        prompt_tokens=draw(st.integers(0, 10**6)),
        cached_tokens=draw(st.integers(0, 10**6)),
        prefix_version=draw(st.none() | st.integers(0, int(versions.min(initial=10**6)))),
        queue_seconds=draw(st.none() | st.floats(0, 1e6)),
    )


def make(tokens: list[int], versions: list[int], finish_reason: str = "stop") -> Generation:
    return Generation(
        np.asarray(tokens, np.int32), np.full(len(tokens), -0.5, np.float32), np.asarray(versions, np.int32),
        finish_reason, 7, 4,
    )  # fmt: skip


def answer(n: int = 4, **meta: Any) -> dict[str, Any]:
    """As SGLang gives it, for n tokens; `meta` differs. What is `...` is left out."""
    whole = {
        "id": "r",
        "finish_reason": {"type": "stop", "matched": 10 + n},
        "prompt_tokens": 7,
        "completion_tokens": n,
        "cached_tokens": 4,
        "output_token_logprobs": [[-0.5 * i, 10 + i, None] for i in range(n)],
        "weight_version": "3",
        "weight_versions": [{"version": "3", "start": 0, "end": n}],
    }
    whole |= meta
    return {
        "text": "",
        "output_ids": [10 + i for i in range(n)],
        "meta_info": {name: value for name, value in whole.items() if value is not ...},
    }


def span(version: Any, start: int, end: int) -> dict[str, Any]:
    return {"version": version, "start": start, "end": end}


# Answers --------------------------------------------------------------------------------------------------------------


@given(generations())
def test_a_turn_comes_back_from_json_exactly(generation):
    back = from_answer(json.loads(json.dumps(to_answer(generation, "rid", 0.5), allow_nan=False)))
    for name in ("token_ids", "logprobs", "weight_versions"):
        sent, came = getattr(generation, name), getattr(back, name)
        assert (came.dtype, came.tobytes()) == (sent.dtype, sent.tobytes())
    for name in ("finish_reason", "prompt_tokens", "cached_tokens", "prefix_version", "queue_seconds"):
        assert getattr(back, name) == getattr(generation, name)


@given(generations())
def test_the_spans_of_an_answer_cover_its_tokens_once_and_neighbours_differ(generation):
    meta = to_answer(generation, "rid", 0.5)["meta_info"]
    spans = meta["weight_versions"]
    covered = [int(span["version"]) for span in spans for _ in range(span["start"], span["end"])]
    assert covered == generation.weight_versions.tolist()
    assert [span["start"] for span in spans] == [0, *(span["end"] for span in spans)][: len(spans)]
    assert all(one["version"] != two["version"] for one, two in itertools.pairwise(spans))
    assert all(type(span["version"]) is str for span in spans)
    assert meta["weight_version"] == (spans[-1]["version"] if spans else "0")


def test_an_answer_looks_like_sglang_s():
    assert to_answer(make([5, 6, 9], [1, 1, 2]), "mine", 0.25) == {
        "text": "",
        "output_ids": [5, 6, 9],
        "meta_info": {
            "id": "mine",
            "finish_reason": {"type": "stop", "matched": 9},
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "cached_tokens": 4,
            "output_token_logprobs": [(-0.5, 5, None), (-0.5, 6, None), (-0.5, 9, None)],
            "weight_version": "2",
            "weight_versions": [span("1", 0, 2), span("2", 2, 3)],
            "e2e_latency": 0.25,
        },
    }
    assert to_answer(make([5], [1], "length"), "r", 0)["meta_info"]["finish_reason"] == {"type": "length", "length": 1}


def test_sglang_s_own_answer_is_understood():
    turn = from_answer(answer())
    turn.check()
    assert turn.token_ids.tolist() == [10, 11, 12, 13]
    assert turn.logprobs.tolist() == [0, -0.5, -1, -1.5]
    assert turn.weight_versions.tolist() == [3, 3, 3, 3]
    assert (turn.finish_reason, turn.prompt_tokens, turn.cached_tokens) == ("stop", 7, 4)


def test_a_finish_reason_that_is_a_plain_word_is_understood():
    assert from_answer(answer(finish_reason="length")).finish_reason == "length"


def test_so_is_the_plain_word_abort():
    assert from_answer(answer(finish_reason="abort")).finish_reason == "abort"


def test_counts_that_an_answer_lacks_are_0():
    turn = from_answer(answer(prompt_tokens=..., cached_tokens=...))
    assert (turn.prompt_tokens, turn.cached_tokens) == (0, 0)


@pytest.mark.parametrize("said", [..., None, -0.5, float("nan"), float("inf"), "0.5", True], ids=repr)
def test_a_wait_in_the_queue_that_was_not_measured_is_unknown(said):
    assert from_answer(answer(queue_time=0.25)).queue_seconds == 0.25
    assert from_answer(answer(queue_time=said)).queue_seconds is None


def test_an_aborted_request_is_a_part_of_a_turn_with_what_it_sampled():
    turn = from_answer(answer(2, finish_reason={"type": "abort", "message": "Aborted"}))
    assert (turn.finish_reason, turn.token_ids.tolist(), turn.weight_versions.tolist()) == ("abort", [10, 11], [3, 3])


def test_a_request_that_is_aborted_before_its_first_token_is_an_empty_part():
    meta = {"prompt_tokens": ..., "cached_tokens": ..., "weight_versions": []}
    turn = from_answer(answer(0, finish_reason={"type": "abort", "message": "Abort in waiting queue"}, **meta))
    assert turn.finish_reason == "abort"
    assert [len(turn.token_ids), len(turn.logprobs), len(turn.weight_versions)] == [0, 0, 0]
    assert (turn.token_ids.dtype, turn.logprobs.dtype, turn.weight_versions.dtype) == (np.int32, np.float32, np.int32)


def test_an_abort_with_a_status_code_is_a_refusal():
    reason = {"type": "abort", "message": "the prompt is too long", "status_code": 400, "err_type": "BadRequestError"}
    with pytest.raises(ValueError, match=r"^the engine refused the request: the prompt is too long$"):
        from_answer(answer(0, finish_reason=reason))


@pytest.mark.parametrize(
    ("meta", "versions"),
    [
        ({"weight_versions": [span("3", 0, 1), span("4", 1, 4)]}, [3, 4, 4, 4]),
        ({"weight_versions": [span(3, 0, 4)]}, [3] * 4),
        ({"weight_versions": ..., "weight_version": "9"}, [9] * 4),
        ({"weight_versions": None, "weight_version": 9}, [9] * 4),
        ({"weight_versions": ..., "weight_version": "default"}, [0] * 4),
        ({"weight_versions": ..., "weight_version": None}, [0] * 4),
        ({"weight_versions": ..., "weight_version": ...}, [0] * 4),
        ({"weight_versions": [span("default", 0, 2), span("1", 2, 4)]}, [0, 0, 1, 1]),
    ],
)
def test_weight_versions_are_those_of_the_spans_else_the_answer_s_and_0_before_there_is_one(meta, versions):
    assert from_answer(answer(**meta)).weight_versions.tolist() == versions


@pytest.mark.parametrize(
    "version",
    [
        "v2",
        "1.5",
        "",
        "step-3",
        pytest.param(1.5),
        pytest.param([3]),
    ],
    ids=repr,
)
def test_a_weight_version_that_is_no_integer_is_refused(version):
    message = f"the engine's weight version is {version!r}; it must be an integer"
    with pytest.raises(ValueError, match=re.escape(message)):
        from_answer(answer(weight_version=version, weight_versions=[span(version, 0, 4)]))


@pytest.mark.parametrize(
    "spans",
    [
        [span("3", 0, 3)],
        [span("3", 1, 4)],
        [span("3", 0, 2), span("4", 3, 4)],
        [span("3", 4, 8)],
        [span("-1", 0, 4)],
    ],
    ids=["an end short", "a start late", "a gap", "elsewhere", "a negative version"],
)
def test_spans_that_do_not_cover_the_tokens_are_refused(spans):
    with pytest.raises(ValueError, match=r"weight versions .* do not cover its 4 tokens"):
        from_answer(answer(weight_versions=spans))


@pytest.mark.parametrize(
    ("logprobs", "count"),
    [
        ([[-0.5, 10, None], [-0.5, 11, None], [-0.5, 12, None]], 3),
        ([[-0.5, 10 + i, None] for i in range(5)], 5),
        ([], 0),
        ([[-0.5, 10, None], [-0.5, 11, None], [-0.5, 13, None], [-0.5, 12, None]], 4),
        ([[-0.5, 10, None], [-0.5, 11, None], [-0.5, 12, None], [-0.5, 99, None]], 4),
    ],
    ids=["one too few", "one too many", "none", "in another order", "another token's"],
)
def test_log_probs_that_are_not_those_of_the_tokens_are_refused(logprobs, count):
    with pytest.raises(ValueError, match=f"the engine's {count} log-probs do not match its 4 tokens"):
        from_answer(answer(output_token_logprobs=logprobs))


@pytest.mark.parametrize("name", ["output_token_logprobs", "finish_reason"])
def test_an_answer_that_lacks_something_is_refused_with_its_name(name):
    with pytest.raises(ValueError, match=f"lacks '{name}': is it SGLang's /generate, with return_logprob"):
        from_answer(answer(**{name: ...}))


@pytest.mark.parametrize("name", ["output_ids", "meta_info"])
def test_so_is_one_without_tokens_or_meta_info(name):
    whole = answer()
    del whole[name]
    with pytest.raises(ValueError, match=f"lacks '{name}'"):
        from_answer(whole)


def test_an_answer_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"is it SGLang's /generate"):
        from_answer({"error": {"message": "no"}})
    with pytest.raises(ValueError, match=r"is it SGLang's /generate"):
        from_answer([answer()])  # type: ignore[arg-type]  # a batch's answer


@pytest.mark.parametrize(
    "meta",
    [
        {"output_token_logprobs": None},
        {"output_token_logprobs": [[None, 10 + i, None] for i in range(4)]},
        {"finish_reason": {"matched": 5}},
        {"weight_versions": [{"version": "3"}]},
    ],
    ids=["no log-probs", "empty log-probs", "no type", "no start"],
)
def test_an_answer_with_something_else_in_its_place_is_refused_too(meta):
    with pytest.raises(ValueError):
        from_answer(answer(**meta))


# Requests -------------------------------------------------------------------------------------------------------------


def test_a_request_looks_like_sglang_s():
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=20, max_new_tokens=64, stop_token_ids=(1, 2), ignore_eos=True)
    assert to_payload(np.asarray([4, 5], np.int32), sampling, "mine") == {
        "input_ids": [4, 5],
        "sampling_params": {
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 20,
            "max_new_tokens": 64,
            "stop_token_ids": [1, 2],
            "ignore_eos": True,
            "no_stop_trim": True,
        },
        "return_logprob": True,
        "rid": "mine",
    }
    assert sampling_params(Sampling())["stop_token_ids"] is None
