"""gpt-oss's turns are read in every order of a header that its models write, and nothing else is a call."""

from __future__ import annotations

import pytest

from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.transcript import Transcript
from tests.families.play import generation
from tests.support.family_templates import tokenizer

THOUGHT = "<|channel|>analysis<|message|>A thought.<|end|><|start|>assistant"


def made(*, constrain: bool) -> ChatCodec:
    own = tokenizer("channels")
    own.chat_template = own.chat_template.replace(
        "{%- if message.tool_calls | length > 1 -%}",
        "{%- if message.content and message.reasoning_content -%}{{- raise_exception('not both') -}}{%- endif -%}"
        "{%- if message.tool_calls | length > 1 -%}",
    )
    if constrain:
        own.add_special_tokens({"additional_special_tokens": ["<|constrain|>"]}, replace_extra_special_tokens=False)
    codec = ChatCodec(own, name="harmony")
    assert codec.tool_parser == "harmony"
    return codec


@pytest.fixture(scope="module")
def harmony() -> ChatCodec:
    return made(constrain=True)


def test_a_call_is_read_where_the_tokenizer_has_no_token_for_the_type_of_its_arguments() -> None:
    plain = made(constrain=False)
    for type_ in ("", " json", " <|constrain|>json"):
        header = f"<|channel|>commentary to=functions.look_up{type_}"
        turn = plain.parse(plain.encode_written(f'{header}<|message|>{{"id": "1"}}<|call|>'))
        assert [(call.name, call.arguments, call.status) for call in turn.calls] == [("look_up", {"id": "1"}, "ok")]


@pytest.mark.parametrize(
    "header",
    [
        " to=functions.look_up<|channel|>commentary json",
        "<|channel|>commentary to=functions.look_up <|constrain|>json",
        "<|channel|>commentary to=functions.look_up",
    ],
)
@pytest.mark.parametrize("before", ["", THOUGHT])
def test_every_order_of_a_call_s_header_is_read(harmony: ChatCodec, header: str, before: str) -> None:
    turn = harmony.parse(harmony.encode_written(f'{before}{header}<|message|>{{"id": "1"}}<|call|>'))
    assert [(call.name, call.arguments, call.status) for call in turn.calls] == [("look_up", {"id": "1"}, "ok")]
    assert (turn.content, turn.reasoning) == ("", "A thought." if before else None)


def test_what_is_said_before_a_call_is_said(harmony: ChatCodec) -> None:
    written = (
        f"{THOUGHT}<|channel|>commentary<|message|>One moment.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.look_up <|constrain|>json<|message|>{"id": "1"}<|call|>'
    )
    transcript = Transcript(harmony)
    opening = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}]
    prompt, sampled = transcript.prompt(opening).tolist(), harmony.encode_written(written)
    turn = transcript.record(generation(sampled))
    assert (turn.content, turn.reasoning, [call.status for call in turn.calls]) == ("One moment.", "A thought.", ["ok"])
    answer = {"role": "tool", "tool_call_id": "call_0", "content": "{}"}
    following = transcript.prompt([answer]).tolist()
    assert following[: len(prompt) + len(sampled)] == prompt + sampled
    assert harmony.decode(following[len(prompt) + len(sampled) :]).startswith("<|start|>functions.look_up to=assistant")
    transcript.record(generation(harmony.encode_turn("Done.")))
    transcript.prompt([{"role": "user", "content": "Thanks."}])  # the earlier turn stays writable


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ('<|channel|>commentary to=browser.search<|message|>{"a": 1}<|call|>', "malformed_structure"),
        ('<|channel|>commentary to=functions.x json<|message|>{"a": 1} x<|call|>', "invalid_json"),
        ('<|channel|>commentary to=functions.x json<|message|>{"a": "\\ud83d"}<|call|>', "invalid_json"),
        ('<|channel|>commentary to=functions.x json<|message|>{"a": "\\ud800"}<|call|>', "invalid_json"),
        ('<|channel|>commentary to=functions.x json<|message|>{"a": 1, "a": 2}<|call|>', "duplicate_key"),
        ("<|channel|>commentary to=functions.x json<|message|>[1]<|call|>", "arguments_not_an_object"),
        ("<|channel|>loud<|message|>Hello.<|return|>", "malformed_structure"),
        (
            "<|channel|>commentary to=functions.x json<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>"
            "Done.<|return|>",
            "malformed_structure",
        ),
    ],
)
def test_what_is_not_exactly_a_call_is_malformed(harmony: ChatCodec, written: str, status: str) -> None:
    assert [call.status for call in harmony.parse(harmony.encode_written(written)).calls] == [status]


@pytest.mark.parametrize("thought", ["to=functions.x", '{"a": 1}', "A call to=functions.x<|channel|>"])
def test_nothing_inside_of_a_thought_is_a_call(harmony: ChatCodec, thought: str) -> None:
    turn = harmony.parse(harmony.encode_written(f"<|channel|>analysis<|message|>{thought}"))
    assert (turn.calls, turn.content) == ([], "")
