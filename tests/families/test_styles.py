"""Every style of chat template is learned: what is written is read back, and every prompt is the template's."""

from __future__ import annotations

import random

import pytest

from rollout_service.chat.parsed_turn import MALFORMED_ARGUMENT
from rollout_service.chat.transcript import History, Transcript
from tests.families.mutations import MUTATIONS, check
from tests.families.play import generation, play
from tests.support.bridge import bridge
from tests.support.family_templates import STYLES, codec, tokenizer


@pytest.mark.parametrize("style", STYLES)
def test_random_conversations_are_the_template_s_and_are_read_back(style: str) -> None:
    report = play(codec(style), range(8))
    assert not report.wrong, report.examples
    assert report.turns > 30


@pytest.mark.parametrize("style", STYLES)
def test_a_mutated_template_is_refused_or_followed_without_a_wrong_token(style: str) -> None:
    rng = random.Random(style)
    original, seen = STYLES[style][0], 0
    while seen < 3:
        mutated = MUTATIONS[rng.choice(list(MUTATIONS))](rng, original)
        if mutated is not None and mutated != original:
            result, why = check(tokenizer(style), mutated, 4)
            assert result != "wrong", (mutated, why)
            seen += 1


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "A tool.",
            "parameters": {
                "type": "object",
                "properties": {"id": {"type": "string"}, "count": {"type": "integer"}, "all": {"type": "boolean"}},
            },
        },
    }
]
ARGUMENTS = {"id": "00501", "count": 5, "all": True}


@pytest.mark.parametrize("style", STYLES)
def test_arguments_have_the_types_of_the_tool_s_schema(style: str) -> None:
    written = codec(style).encode_turn("", [("look_up", ARGUMENTS)], "A thought.")
    (call,) = codec(style).parse(written, TOOLS).calls
    assert (call.status, repr(call.arguments)) == ("ok", repr(ARGUMENTS))


@pytest.mark.parametrize("style", STYLES)
def test_a_call_that_lacks_a_token_is_never_made_with_other_arguments(style: str) -> None:
    made = codec(style)
    written = made.encode_turn("", [("look_up", {"id": "#W1"})], "A thought.")
    for place in range(len(written) - 1):
        turn = made.parse(written[:place] + written[place + 1 :], TOOLS)
        for call in turn.calls:
            if call.status == "ok":
                assert set(call.arguments) <= {"id", "d", "i", ""}
                assert call.arguments.get("id", "#W1") in ("#W1", "W1", "#1", "#W")
            else:
                assert list(call.arguments) == [MALFORMED_ARGUMENT]


@pytest.mark.parametrize("style", STYLES)
def test_what_the_template_wrote_as_the_token_that_ends_a_turn_ends_it(style: str) -> None:
    made = codec(style)
    for calls, ending in (((), made.closing.text), ((("look_up", {}),), made.closing.calls)):
        ids = made.encode_turn("Text." if not calls else "", calls, "A thought.")
        assert made.decode(ids[-1:]) == ending.sampled
        assert ids[-1] in made.stop_token_ids
        assert ids[-1] in made.turn_end_ids


@pytest.mark.parametrize("history", ["append", "template"])
@pytest.mark.parametrize("style", STYLES)
def test_a_malformed_call_stays_as_sampled_and_is_answered(style: str, history: History) -> None:
    made = codec(style)
    whole = made.encode_turn("", [("look_up", {"id": "1"})], "A thought.")
    text = made.decode(whole[:-1])
    at = max(text.rfind("}"), text.rfind("<parameter="), text.rfind("<arg_value>"))
    sampled = [*made.encode_written(text[:at] + text[at + 1 :]), whole[-1]]
    transcript = Transcript(made, TOOLS, history)
    opening = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}]
    prompt = transcript.prompt(opening).tolist()
    turn = transcript.record(generation(sampled))
    assert [call.status == "ok" for call in turn.calls] == [False]
    answer = {"role": "tool", "tool_call_id": "call_0", "content": "Error: malformed"}
    following = transcript.prompt([answer]).tolist()
    tail = bridge(made, [answer], [*opening, turn.as_answered_message()], TOOLS)
    assert following[-len(tail) :] == tail
    if history == "append":
        assert following[: len(prompt) + len(sampled)] == prompt + sampled
    assert len(transcript.turns) == 1


def test_a_template_that_escapes_what_the_policy_says_is_refused() -> None:
    made = tokenizer("parameters")
    plain = "{{- message.content or '' -}}"
    assert plain in made.chat_template
    made.chat_template = made.chat_template.replace(plain, "{{- message.content | tojson -}}")
    assert check(made, made.chat_template, 1)[0] == "refused"
