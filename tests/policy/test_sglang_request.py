"""What a client asks of `/generate`, from the bytes that it sent: read as JSON has it, or refused with the field."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.config.sampling import Sampling
from rollout_service.policy import sglang_request
from rollout_service.policy.base import RequestError
from rollout_service.policy.sglang_format import to_payload
from rollout_service.policy.sglang_request import GenerateRequest, read_request

TOKEN = st.integers(0, 2**31 - 1)
SAMPLING = st.builds(
    Sampling,
    temperature=st.just(0.0) | st.floats(1e-6, 1e6),
    top_p=st.floats(1e-6, 1),
    top_k=st.integers(-1, 2**31 - 1),
    max_new_tokens=st.integers(1, 2**31 - 1),
    stop_token_ids=st.lists(TOKEN, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
)
SPACE = st.text(" \t\r\n", max_size=2)
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, 1e-40, 2**31, 2**63, float("nan"), float("inf"), "\ud800", True]),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
FIELDS = ["input_ids", "sampling_params", "rid", "stream", "text", "logprob_start_len", "lora_path", "return_logprob"]
PARAMETERS = ["temperature", "top_p", "top_k", "max_new_tokens", "stop_token_ids", "ignore_eos", "stop", "n", "min_p"]


def read(payload: Any, most_prompts: int = 100) -> GenerateRequest:
    return read_request(json.dumps(payload).encode(), most_prompts)


def prompts(request: GenerateRequest) -> list[list[int]]:
    assert {ids.dtype for ids in request.prompts} == {np.dtype(np.int32)}
    return [ids.tolist() for ids in request.prompts]


# What is read ---------------------------------------------------------------------------------------------------------


@given(prompt=st.lists(TOKEN, min_size=1, max_size=10), sampling=SAMPLING)
def test_what_our_own_client_sends_comes_back_exactly(prompt, sampling):
    request = read(to_payload(np.asarray(prompt, dtype=np.int32), sampling, "mine"))
    assert prompts(request) == [prompt]
    assert (request.sampling, request.rids, request.is_batch) == (sampling, ["mine"], False)


@given(
    ids=st.lists(st.lists(TOKEN, min_size=1, max_size=40), min_size=1, max_size=5),
    rest=st.dictionaries(st.sampled_from(["rid", "return_logprob", "stream"]), st.none(), max_size=3),
    before=st.booleans(),
    piece=st.integers(1, 200),
    spaces=st.lists(SPACE, min_size=4, max_size=4),
)
def test_ids_are_read_as_json_has_them_wherever_they_are_cut(ids, rest, before, piece, spaces):
    one, two, three, four = spaces
    for given_ids in (ids, ids[0]):
        text = (
            json.dumps(given_ids).replace("[", f"{one}[{two}").replace(",", f"{three},{four}").replace("]", f"{two}]")
        )
        members = [f'{one}"input_ids"{two}:{text}']
        others = [f'"{name}":null' for name in rest]
        body = "{" + ",".join([*others, *members] if before else [*members, *others]) + "}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sglang_request, "_PIECE", piece)
            request = read_request(body.encode(), 5)
        assert prompts(request) == (ids if given_ids is ids else [ids[0]])
        assert request.is_batch == (given_ids is ids)


@given(st.data())
def test_whatever_is_changed_in_a_list_of_ids_it_is_read_as_json_has_it_or_refused(data):
    text = json.dumps(data.draw(st.lists(TOKEN, min_size=1, max_size=9) | st.lists(st.lists(TOKEN, max_size=3))))
    where = data.draw(st.integers(0, len(text)))
    text = text[:where] + data.draw(st.text('[],.-e"{}: 0n', max_size=2)) + text[where + data.draw(st.integers(0, 2)) :]
    body = f'{{"input_ids": {text}}}'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sglang_request, "_PIECE", data.draw(st.integers(1, 20)))
        try:
            request = read_request(body.encode(), 100)
        except RequestError:
            return
    whole = json.loads(body)["input_ids"]
    assert prompts(request) == (whole if request.is_batch else [whole])


@pytest.mark.parametrize("payload", [{}, {"sampling_params": {}}, {"sampling_params": None}])
def test_what_a_client_leaves_out_is_as_sglang_has_it(payload):
    assert read({"input_ids": [1]} | payload).sampling == Sampling(
        temperature=1.0, top_p=1.0, top_k=-1, max_new_tokens=128, stop_token_ids=(), ignore_eos=False
    )


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": None, "top_p": None, "top_k": None, "max_new_tokens": None, "ignore_eos": None},
        {"stop_token_ids": None},
        {"stop_token_ids": []},
        {"stop": None},
        {"stop": []},
        {"stop": ""},
        {"n": 1},
        {"n": None},
        {"skip_special_tokens": False, "spaces_between_special_tokens": False, "no_stop_trim": True},
    ],
    ids=str,
)
def test_what_only_concerns_text_or_is_null_or_empty_changes_nothing(params):
    assert read({"input_ids": [1], "sampling_params": params}).sampling == Sampling(max_new_tokens=128)


def test_fields_that_change_nothing_here_may_be_given():
    others = {
        "return_logprob": True,
        "logprob_start_len": -1,
        "top_logprobs_num": 0,
        "stream": False,
        "lora_path": None,
    }
    assert prompts(read({"input_ids": [1]} | others)) == [[1]]


def test_other_threads_run_between_the_pieces_of_a_large_body(monkeypatch):
    """A piece is all that the interpreter's lock is held for at once."""
    body = json.dumps({"input_ids": list(range(300_000))}).encode()
    largest, loads = 0, json.loads

    def measured(text: str) -> Any:
        nonlocal largest
        largest = max(largest, len(text))
        return loads(text)

    monkeypatch.setattr(sglang_request.json, "loads", measured)
    assert prompts(read_request(body, 1)) == [list(range(300_000))]
    assert largest < len(body) / 20


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [{}, {"text": "hello"}, [], None, "hello", 5, {"inputs": [1]}], ids=repr)
def test_a_request_without_token_ids_is_refused(payload):
    with pytest.raises(RequestError, match=r"^input_ids is missing: this endpoint takes token ids, not text$"):
        read(payload)


@pytest.mark.parametrize(
    "ids",
    [
        [], [[]], [[1], []], [[1], 2], [1, [2]], [[[1]]], [-1], [1, -2], [2**31], [2**64], [10**5000], [1.0], ["1"],
        [True], [None], "12", None, 5, {"a": 1}, [{"a": [1]}], [float("nan")],
    ],
    ids=lambda value: repr(value)[:20] if value != [10**5000] else "[10**5000]",
)  # fmt: skip
def test_input_ids_that_are_no_token_ids_are_refused(ids, monkeypatch):
    text = "[1" + "0" * 5000 + "]" if ids == [10**5000] else json.dumps(ids)
    with pytest.raises(
        RequestError, match=r"^input_ids must be a list of token ids, not empty, or a list of such lists"
    ):
        read_request(f'{{"input_ids": {text}}}'.encode(), 100)


@pytest.mark.parametrize(
    "body", ['{"input_ids": [1], "input_ids": [2]}', '{"input_ids": 5, "rid": {"input_ids": [1]}}']
)
def test_input_ids_that_stand_there_twice_are_refused(body):
    with pytest.raises(RequestError, match=r"^input_ids must be"):
        read_request(body.encode(), 100)


def test_more_prompts_than_allowed_are_refused_before_they_are_read():
    assert len(read({"input_ids": [[1]] * 3}, most_prompts=3).prompts) == 3
    with pytest.raises(RequestError, match=r"^input_ids has more than 3 prompts: send them in several requests$"):
        read({"input_ids": [[1]] * 3 + ["no ids"]}, most_prompts=3)


@pytest.mark.parametrize(
    "field",
    [
        "stream", "image_data", "audio_data", "lora_path", "return_hidden_states", "text", "top_logprobs_num",
        "token_ids_logprob", "priority", "extra_key", "input_embeds", "\ud800",
    ],
)  # fmt: skip
def test_what_is_not_done_here_is_refused_by_its_name(field):
    with pytest.raises(RequestError, match=f"^{field} is not supported here$"):
        read({"input_ids": [1], field: 1})
    assert read({"input_ids": [1], field: False}).sampling == Sampling(max_new_tokens=128)


@pytest.mark.parametrize("params", [{"stop": "END"}, {"stop": ["END"]}, {"n": 2}, {"n": 0}, {"n": [1]}], ids=str)
def test_stop_words_and_several_samples_are_refused_with_what_to_do_instead(params):
    with pytest.raises(RequestError, match=r"sampling_params.stop and n .* use stop_token_ids, and ask n times"):
        read({"input_ids": [1], "sampling_params": params})


def test_sampling_params_for_each_prompt_are_refused():
    with pytest.raises(RequestError, match="sampling_params must be one object, for all prompts of a batch"):
        read({"input_ids": [[1], [2]], "sampling_params": [{}, {}]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e-40),
        ("temperature", 1e7),
        ("temperature", 10**400),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_p", 1e-45),
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_k", 2**31),
        ("top_k", False),
        ("max_new_tokens", 0),
        ("max_new_tokens", 2**31),
        ("max_new_tokens", "many"),
        ("stop_token_ids", 5),
        ("stop_token_ids", 0),
        ("stop_token_ids", ["END"]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [2**31]),
        ("stop_token_ids", [True]),
        ("stop_token_ids", [1] * 1025),
        ("ignore_eos", "perhaps"),
        ("min_p", 0.1),
        ("regex", "a*"),
        ("frequency_penalty", 0.5),
        ("__class__", 1),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_bad_or_unknown_sampling_parameter_is_refused_by_its_name(name, value):
    with pytest.raises(RequestError, match=rf"^sampling_params\.{name}: \S+"):
        read({"input_ids": [1], "sampling_params": {name: value}})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\xfa", "not UTF-8"),
        (b"input_ids=1", "not JSON"),
        (b'{"a":' * 20_000, "besides its input_ids; at most"),
        (b'{"a":' * 10_000, "nested too deeply"),
        (b'{"input_ids": [' + b'{"a":' * 3000 + b"]", "nested too deeply"),
        (b'{"rid": ' + b"9" * 5000 + b"}", "a number that cannot be read"),
        (b'{"input_ids": [1]', "not JSON"),
        (b'{"input_ids": [1', "input_ids must be"),
        (b'{"input_ids": [[1], [2', "input_ids must be"),
        (b'{"input_ids": [1], "rid": "' + b"x" * 70_000 + b'"}', "besides its input_ids; at most 65536 are allowed"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_body_that_cannot_be_read_is_refused_with_the_reason(body, reason):
    with pytest.raises(RequestError, match=re.escape(reason)):
        read_request(body, 100)


@given(
    st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=4),
    st.dictionaries(st.sampled_from(PARAMETERS), ANYTHING, max_size=4),
    st.binary(max_size=3),
    st.integers(0, 400),
)
def test_any_body_is_a_request_within_every_range_or_refused(fields, params, noise, where):
    body = json.dumps({"input_ids": [1], "sampling_params": params} | fields).encode()
    for changed in (body, body[:where] + noise + body[where + 1 :]):
        try:
            request = read_request(changed, 3)
        except RequestError:
            continue
        sampling = request.sampling
        assert sampling.temperature == 0 or 1e-6 <= sampling.temperature <= 1e6
        assert 1e-6 <= sampling.top_p <= 1
        assert 1 <= sampling.max_new_tokens < 2**31
        assert sampling.top_k == -1 or 1 <= sampling.top_k < 2**31
        assert 1 <= len(request.prompts) <= 3
        assert all(len(ids) and ids.min() >= 0 for ids in request.prompts)
