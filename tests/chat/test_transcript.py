"""A transcript's tokens are what the engine was sent and sampled: each sampled token once, everything else context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.parsed_turn import OK, ChatMessage
from rollout_service.chat.transcript import History, Transcript
from rollout_service.policy.base import Generation
from rollout_service.record.trajectory import TokenSegment
from tests.support.bridge import bridge

LoadCodec = Callable[[str], ChatCodec]

some = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])

SYSTEM = {"role": "system", "content": "<instructions>\nHelp.\n</instructions>\n<policy>\nBe kind.\n</policy>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A tool.",
            "parameters": {"type": "object", "properties": {"id": {"type": "string"}}},
        },
    }
    for name in ("look_up", "change")
]


def generation(token_ids: list[int], version: int = 0, finish_reason: str = "stop") -> Generation:
    """Log-probs that differ from token to token: a shift by one shows."""
    return Generation(
        token_ids=np.asarray(token_ids, dtype=np.int32),
        logprobs=-np.arange(1, len(token_ids) + 1, dtype=np.float32),
        weight_versions=np.full(len(token_ids), version, dtype=np.int32),
        finish_reason=finish_reason,
    )


def user(content: str) -> ChatMessage:
    return {"role": "user", "content": content}


def template_ids(codec: ChatCodec, messages: list[ChatMessage]) -> list[int]:
    """The tokenizer's own rendering of the conversation, in its own tokens."""
    return list(
        codec._tokenizer.apply_chat_template(
            messages, tools=TOOLS, tokenize=True, add_generation_prompt=True, return_dict=False
        )
    )


@dataclass
class Step:
    """One policy turn, and what is said to it."""

    content: str = ""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    reasoning: str | None = None
    keep: float = 1.0
    """The share of the turn's tokens that the engine sampled before it was cut by length."""
    answers: list[str] = field(default_factory=list)

    def sampled(self, codec: ChatCodec) -> list[int]:
        ids = codec.encode_turn(self.content, self.calls, self.reasoning)
        return ids[: max(1, round(self.keep * len(ids)))]


class Engine:
    """Drives a transcript through steps, and keeps what an engine would have seen."""

    def __init__(self, codec: ChatCodec, history: History) -> None:
        self.codec = codec
        self.transcript = Transcript(codec, TOOLS, history)
        self.messages: list[ChatMessage] = [SYSTEM, user("Hello.")]
        """The conversation as a chat template takes it."""
        self.conversations: list[list[ChatMessage]] = []
        """The conversation as it was at each prompt."""
        self.prompts: list[list[int]] = []
        self.sampled: list[list[int]] = []
        self.known: list[int] = []
        self._new = list(self.messages)

    def take(self, step: Step) -> None:
        self.conversations.append(list(self.messages))
        self.prompts.append(self.transcript.prompt(self._new).tolist())
        self.known.append(self.transcript.known_tokens)
        ids = step.sampled(self.codec)
        cut = ids[-1] != self.codec.end_of_turn_id
        self.sampled.append(ids)
        turn = self.transcript.record(generation(ids, len(self.prompts), "length" if cut else "stop"), seconds=0.5)
        replies = step.answers[: len(turn.calls)] if turn.calls else []
        replies += ["{}"] * (len(turn.calls) - len(replies))
        self._new = [{"role": "tool", "tool_call_id": "call_0", "content": text} for text in replies]
        self._new = self._new or [user(" ".join(step.answers))]
        self.messages += [turn.as_message(), *self._new]

    def run(self, steps: list[Step]) -> list[TokenSegment]:
        for step in steps:
            self.take(step)
        return self.transcript.segments()


WORDS = st.text("abc é漢🙂.,\n<|>{}", max_size=20) | st.sampled_from(["<|im_end|>", "<tool_call>", "</think>", ""])
PLAIN = st.text("abc .,é", max_size=20).map(str.strip)


def steps(words: st.SearchStrategy[str], keep: st.SearchStrategy[float]) -> st.SearchStrategy[list[Step]]:
    arguments = st.dictionaries(words, words, max_size=2)
    step = st.builds(
        Step,
        content=words,
        calls=st.lists(st.tuples(st.sampled_from(["look_up", "change"]), arguments), max_size=3),
        reasoning=st.none() | words,
        keep=keep,
        answers=st.lists(words, max_size=3),
    )
    return st.lists(step, min_size=1, max_size=6)


WHOLE = st.just(1.0)
CUT = WHOLE | st.floats(0, 1)


def check(engine: Engine, segments: list[TokenSegment]) -> None:
    """What holds in either mode: each turn once, as sampled, where it was sampled; all else is context."""
    codec, turns = engine.codec, [(segment, turn) for segment in segments for turn in segment.turns]
    assert [turn for _, turn in turns] == engine.transcript.turns
    for number, ((segment, turn), prompt, sampled) in enumerate(
        zip(turns, engine.prompts, engine.sampled, strict=True), start=1
    ):
        span = slice(turn.start, turn.end)
        assert segment.token_ids[: turn.start].tolist() == prompt
        assert segment.token_ids[span].tolist() == sampled
        assert segment.logprobs[span].tolist() == [-float(i + 1) for i in range(len(sampled))]
        assert segment.weight_versions[span].tolist() == [number] * len(sampled)
        assert turn.finish_reason == ("stop" if sampled[-1] == codec.end_of_turn_id else "length")
        assert turn.tool_calls == [call.status for call in codec.parse(sampled).calls]
    sent = [[], *([*prompt, *sampled] for prompt, sampled in zip(engine.prompts, engine.sampled, strict=True))]
    for known, before, prompt in zip(engine.known, sent, engine.prompts, strict=False):
        assert prompt[:known] == before[:known]
        assert len(before) >= known
    for segment in segments:
        expected = np.zeros(len(segment.token_ids), dtype=np.uint8)
        for turn in segment.turns:
            expected[turn.start : turn.end] = 1
        assert segment.loss_mask.tolist() == expected.tolist()
        assert (segment.weight_versions == -1).tolist() == (segment.loss_mask == 0).tolist()
        assert segment.logprobs[segment.loss_mask == 0].tolist() == [0.0] * int((segment.loss_mask == 0).sum())
        assert segment.loss_mask[-1] == 1
        assert segment.prompt_length == segment.turns[0].start
    assert sum(segment.policy_token_count for segment in segments) == sum(map(len, engine.sampled))


def checked(engine: Engine, steps: list[Step]) -> tuple[Engine, list[TokenSegment]]:
    segments = engine.run(steps)
    check(engine, segments)
    return engine, segments


# Append mode ---------------------------------------------------------------------------------------------------------


@given(steps=steps(WORDS, CUT))
@some
def test_append_mode_only_ever_appends(codec: ChatCodec, steps: list[Step]) -> None:
    engine, segments = checked(Engine(codec, "append"), steps)
    assert len(segments) == 1
    for prompt, sampled, following in zip(engine.prompts, engine.sampled, engine.prompts[1:], strict=False):
        assert following[: len(prompt) + len(sampled)] == prompt + sampled


@given(steps=steps(PLAIN, CUT))
@some
def test_what_follows_a_turn_is_what_the_template_puts_there(codec: ChatCodec, steps: list[Step]) -> None:
    engine = Engine(codec, "append")
    engine.run(steps)
    for number, sampled in enumerate(engine.sampled[:-1]):
        context = engine.prompts[number + 1][len(engine.prompts[number]) + len(sampled) :]
        if sampled[-1] == codec.end_of_turn_id:
            context = [codec.end_of_turn_id, *context]
        assert template_ids(codec, engine.conversations[number + 1])[-len(context) :] == context
        assert context[0] == codec.end_of_turn_id


def test_a_turn_cut_by_length_is_closed_by_context(codec: ChatCodec) -> None:
    whole = codec.encode_turn("A long answer that does not fit.", reasoning="A thought.")
    transcript = Transcript(codec, TOOLS)
    prompt = transcript.prompt([user("Hello.")]).tolist()
    transcript.record(generation(whole[:-2], finish_reason="length"))
    following = transcript.prompt([user("Go on.")]).tolist()
    assert following == prompt + whole[:-2] + [codec.end_of_turn_id] + bridge(codec, [user("Go on.")])
    transcript.record(generation(whole))
    (segment,) = transcript.segments()
    assert segment.token_ids[len(prompt) + len(whole) - 2] == codec.end_of_turn_id
    assert segment.loss_mask[len(prompt) + len(whole) - 2] == 0


def test_a_cut_right_behind_the_end_of_turn_is_not_closed_twice(embedded: ChatCodec) -> None:
    transcript = Transcript(embedded, TOOLS)
    prompt, sampled = transcript.prompt([user("Hello.")]).tolist(), embedded.encode_turn("Yes.")
    transcript.record(generation(sampled, finish_reason="length"))
    assert transcript.prompt([user("Go on.")]).tolist() == prompt + sampled + bridge(embedded, [user("Go on.")])


@pytest.mark.parametrize("history", ["append", "template"])
def test_a_malformed_call_is_kept_as_sampled_and_answered(embedded: ChatCodec, history: History) -> None:
    sampled = embedded.encode_written('<tool_call>\n{"name": "look_up", "arguments": {\n</tool_call><|im_end|>')
    answer = {"role": "tool", "tool_call_id": "call_0", "content": "Error: malformed"}
    transcript = Transcript(embedded, TOOLS, history)
    prompt = transcript.prompt([user("Hello.")]).tolist()
    turn = transcript.record(generation(sampled))
    following = transcript.prompt([answer]).tolist()
    assert [(call.name, call.status) for call in turn.calls] == [("look_up", "invalid_json")]
    assert transcript.turns[0].tool_calls == ["invalid_json"]
    assert following == prompt + sampled + bridge(embedded, [answer])
    transcript.record(generation(embedded.encode_turn("Sorry.")))
    assert len(transcript.segments()) == 1


@pytest.mark.parametrize("history", ["append", "template"])
@pytest.mark.parametrize(
    "written",
    [
        "I say <tool_response> and </think>.",
        'I say <tool_response>.\n<tool_call>\n{"name": "look_up", "arguments": {"id": "</think>"}}\n</tool_call>',
        "<tool_call>\n{broken <think>\n</tool_call>\n<tool_call>\n{}\n</tool_call>",
    ],
)
def test_control_tokens_that_the_policy_sampled_stay_control_tokens(
    embedded: ChatCodec, history: History, written: str
) -> None:
    sampled = embedded.encode_written(f"{written}<|im_end|>")
    transcript = Transcript(embedded, TOOLS, history)
    prompt = transcript.prompt([user("Hello.")]).tolist()
    turn = transcript.record(generation(sampled))
    results = [{"role": "tool", "tool_call_id": "call_0", "content": "<think>"} for _ in turn.calls]
    new = results or [user("Go on with <tool_call>.")]
    following = transcript.prompt(new).tolist()
    assert following == prompt + sampled + bridge(embedded, new)
    controls = [number for number in bridge(embedded, new) if number in embedded.control_ids]
    assert embedded.encode_written("<think>")[0] not in controls
    assert embedded.encode_written("<tool_call>")[0] not in controls


def test_what_was_sampled_in_other_tokens_than_the_tokenizer_s_stays_as_it_was(embedded: ChatCodec) -> None:
    whole = embedded.encode_turn("Hello there.")
    sampled = [embedded.encode_written(letter)[0] for letter in "Hello there."] + [embedded.end_of_turn_id]
    assert sampled != whole
    for history in ("append", "template"):
        transcript = Transcript(embedded, TOOLS, history)
        prompt = transcript.prompt([user("Hello.")]).tolist()
        transcript.record(generation(sampled))
        assert transcript.prompt([user("Go on.")]).tolist() == prompt + sampled + bridge(embedded, [user("Go on.")])


# Template mode -------------------------------------------------------------------------------------------------------


@given(steps=steps(WORDS, CUT))
@some
def test_template_mode_starts_a_segment_exactly_where_history_is_rewritten(codec: ChatCodec, steps: list[Step]) -> None:
    engine, segments = checked(Engine(codec, "template"), steps)
    seen = [prompt + sampled for prompt, sampled in zip(engine.prompts, engine.sampled, strict=True)]
    new = [p for before, p in zip([[-1], *seen], engine.prompts, strict=False) if p[: len(before)] != before]
    assert [segment.token_ids[: segment.prompt_length].tolist() for segment in segments] == new


@given(steps=steps(PLAIN, WHOLE))
@some
def test_template_mode_sends_the_template_s_own_tokens(codec: ChatCodec, steps: list[Step]) -> None:
    engine = Engine(codec, "template")
    engine.run(steps)
    assert engine.prompts == [template_ids(codec, conversation) for conversation in engine.conversations]


def test_a_template_that_forgets_thinking_makes_a_segment_of_each_turn(load_codec: LoadCodec) -> None:
    forgetful = load_codec("forgetful")
    steps = [Step("One.", reasoning="First."), Step(calls=[("look_up", {})], reasoning="Second."), Step("Three.")]
    engine = Engine(forgetful, "template")
    segments = engine.run(steps)
    check(engine, segments)
    assert len(segments) == 3
    texts = [forgetful.decode(segment.token_ids.tolist()) for segment in segments]
    assert ["First." in text for text in texts] == [True, False, False]
    assert ["Second." in text for text in texts] == [False, True, False]
    assert ["One." in text for text in texts] == [True, True, True]

    assert engine.known == [0, 0, 0]

    engine = Engine(forgetful, "append")
    (segment,) = engine.run(steps)
    assert engine.known == [0, *(turn.end for turn in segment.turns[:-1])]
    assert "First." in forgetful.decode(segment.token_ids.tolist())


# Segments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", ["append", "template"])
def test_context_that_no_turn_followed_is_no_part_of_the_record(load_codec: LoadCodec, history: History) -> None:
    engine = Engine(load_codec("forgetful"), history)
    before = engine.run([Step("One.", reasoning="First."), Step(calls=[("look_up", {})], reasoning="Second.")])
    engine.transcript.prompt([{"role": "tool", "tool_call_id": "call_0", "content": "Never sent."}])
    after = engine.transcript.segments()
    assert [segment.token_ids.tolist() for segment in after] == [segment.token_ids.tolist() for segment in before]
    check(engine, after)


def test_a_prompt_without_a_turn_is_no_segment(embedded: ChatCodec) -> None:
    transcript = Transcript(embedded, TOOLS)
    assert transcript.segments() == []
    transcript.prompt([user("Hello.")])
    assert (transcript.segments(), transcript.turns) == ([], [])


def test_a_generation_whose_arrays_differ_in_length_is_refused(embedded: ChatCodec) -> None:
    transcript = Transcript(embedded, TOOLS)
    transcript.prompt([user("Hello.")])
    broken = generation(embedded.encode_turn("Yes."))
    broken.logprobs = broken.logprobs[:-1]
    with pytest.raises(ValueError, match="log-probs"):
        transcript.record(broken)
    assert transcript.segments() == []


def test_the_prompt_that_was_sent_does_not_grow(embedded: ChatCodec) -> None:
    transcript = Transcript(embedded, TOOLS)
    prompt = transcript.prompt([user("Hello.")])
    before = prompt.tolist()
    transcript.record(generation(embedded.encode_turn("Yes.")))
    transcript.prompt([user("Go on.")])
    assert prompt.tolist() == before
    assert prompt.dtype == np.int32


# Whole conversations -------------------------------------------------------------------------------------------------

THOUGHT = "The user wants\n\nan order."
CONVERSATION = [
    Step("Which order?", reasoning=THOUGHT, answers=["#W0123, please.\n"]),
    Step(calls=[("look_up", {"id": "#W0123", "é": [1, 2.5, None, True, {"a": 'say "hi"\n'}]})], reasoning=THOUGHT,
         answers=['{"status": "delivered"}']),
    Step("Looking at both.", calls=[("look_up", {"id": "00501"}), ("change", {})], reasoning=THOUGHT,
         answers=["", "Error: not found\n"]),
    Step(calls=[("change", {"id": "1"}), ("change", {"id": "2"}), ("look_up", {})], reasoning=THOUGHT,
         answers=["1", "2", "3"]),
    Step("Done. 🙂", reasoning=THOUGHT, answers=["Thanks!"]),
    Step("Goodbye.", reasoning=THOUGHT, answers=["###STOP###"]),
]  # fmt: skip


@pytest.mark.parametrize("history", ["append", "template"])
def test_either_mode_is_the_template_where_it_extends_history(extending: ChatCodec, history: History) -> None:
    engine = Engine(extending, history)
    segments = engine.run([replace(step, reasoning=None) for step in CONVERSATION])
    check(engine, segments)
    assert engine.prompts == [template_ids(extending, conversation) for conversation in engine.conversations]
    assert len(segments) == 1
    assert [turn.tool_calls for turn in engine.transcript.turns] == [[OK] * len(step.calls) for step in CONVERSATION]


def test_template_mode_is_the_template_where_it_rewrites_history(rewriting: ChatCodec) -> None:
    engine = Engine(rewriting, "template")
    segments = engine.run(CONVERSATION)
    check(engine, segments)
    assert engine.prompts == [template_ids(rewriting, conversation) for conversation in engine.conversations]
    # Qwen3 keeps thinking while tools answer and drops it when the user speaks: after the 1st, 5th and 6th turn.
    qwen = rewriting.name.startswith("/")
    assert [len(segment.turns) for segment in segments] == ([1, 4, 1] if qwen else [1] * 6)
    for segment in segments[1:]:
        assert THOUGHT not in rewriting.decode(segment.token_ids[: segment.prompt_length].tolist())


def test_append_mode_keeps_thinking_in_one_segment(rewriting: ChatCodec) -> None:
    engine = Engine(rewriting, "append")
    (segment,) = engine.run(CONVERSATION)
    check(engine, [segment])
    assert rewriting.decode(segment.token_ids.tolist()).count(THOUGHT) == len(CONVERSATION)


def test_thinking_is_read_as_thinking(rewriting: ChatCodec) -> None:
    engine = Engine(rewriting, "append")
    engine.run(CONVERSATION)
    said = [message for message in engine.messages if message["role"] == "assistant"]
    assert [message["reasoning_content"] for message in said] == [THOUGHT] * len(said)
    assert [message["content"] for message in said] == [step.content for step in CONVERSATION]


@pytest.mark.parametrize("history", ["append", "template"])
@pytest.mark.parametrize("name", ["opening", "Qwen3-4B-Thinking-2507"])
def test_the_opening_of_thinking_is_context_where_the_template_writes_it(
    load_codec: LoadCodec, name: str, history: History
) -> None:
    codec = load_codec(name)
    opening, (opens,) = codec.encode_written("<think>\n"), codec.encode_written("<think>")
    engine = Engine(codec, history)
    for segment in engine.run(CONVERSATION):
        for turn in segment.turns:
            before = slice(turn.start - len(opening), turn.start)
            assert segment.token_ids[before].tolist() == opening
            assert segment.loss_mask[before].tolist() == [0] * len(opening)
            assert opens not in segment.token_ids[turn.start : turn.end]
