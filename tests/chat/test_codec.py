"""Messages become the template's tokens, a policy's tokens the message that it wrote, and text stays text."""

from __future__ import annotations

import json
import threading
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import rollout_service.chat.codec as chat
from rollout_service.chat.codec import EMBEDDED_TOKENIZER, ChatCodec
from rollout_service.chat.parsed_turn import (
    INVALID_CALL_NAME,
    MALFORMED_ARGUMENT,
    MAX_NESTING,
    OK,
    ChatMessage,
    ParsedTurn,
    tool_call,
)
from tests.support.bridge import bridge

some = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)

TEXT = st.text(max_size=60) | st.text("ab \t\n\"'\\{}[]:,<>/|=é漢🙂\x00\x85\u2028", max_size=30)
COMBINING = TEXT | st.text("aé =<>\n\u0338\u0301", max_size=12)
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(TEXT, JSON, max_size=4)), max_size=3)
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "A tool.", "parameters": {}}}]


def normalized(codec: ChatCodec, text: str) -> str:
    """`text` as the tokenizer takes it: the Qwen ones normalise to NFC."""
    return text if codec._backend.normalizer is None else unicodedata.normalize("NFC", text)


def plain(value: Any) -> str:
    """JSON text: unlike `==`, it tells 1 from 1.0 and from True."""
    return json.dumps(value, ensure_ascii=False)


def control_tokens(codec: ChatCodec) -> list[str]:
    return sorted(codec.decode([number]) for number in codec.control_ids)


def rendered_text(codec: ChatCodec, messages: list[ChatMessage], tools: Any = None) -> str:
    """The tokenizer's own chat template, asked directly."""
    return codec._tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)


def template_ids(codec: ChatCodec, messages: list[ChatMessage], tools: Any = None) -> list[int]:
    return codec.encode_written(rendered_text(codec, messages, tools))


def opens_thinking(codec: ChatCodec) -> bool:
    return rendered_text(codec, [user("hi")]).endswith("<think>\n")


def user(content: str) -> ChatMessage:
    return {"role": "user", "content": content}


# What is written is read back ----------------------------------------------------------------------------------------


@given(content=COMBINING, calls=CALLS, reasoning=COMBINING)
@some
def test_a_written_turn_is_read_back(
    codec: ChatCodec, content: str, calls: list[tuple[str, dict[str, Any]]], reasoning: str
) -> None:
    assume(normalized(codec, plain(calls)) == plain(calls))  # NFC joins the n of an escaped newline with an accent
    turn = codec.parse(codec.encode_turn(content, calls, reasoning))
    assert turn.content == normalized(codec, content).strip()
    assert [call.status for call in turn.calls] == [OK] * len(calls)
    assert plain([(call.name, call.arguments) for call in turn.calls]) == plain(calls)
    assert turn.reasoning == (normalized(codec, reasoning).strip("\n") if codec.supports_reasoning else None)


def test_several_calls_after_text_keep_their_order(codec: ChatCodec) -> None:
    calls = [("look_up", {"id": "00501"}), ("change", {}), ("look_up", {"id": 2})]
    turn = codec.parse(codec.encode_turn("One moment.", calls))
    assert turn.content == "One moment."
    assert [(call.name, call.arguments, call.status) for call in turn.calls] == [(*call, OK) for call in calls]
    assert not turn.is_empty


def test_a_turn_ends_with_one_end_of_turn(codec: ChatCodec) -> None:
    ids = codec.encode_turn(f"Say {codec.end_of_turn}", [("look_up", {"text": codec.end_of_turn})])
    assert ids.count(codec.end_of_turn_id) == 1
    assert ids[-1] == codec.end_of_turn_id
    assert codec.end_of_turn_id in codec.stop_token_ids


@pytest.mark.parametrize("closing", ["<|im_end|>", "<|endoftext|>", ""])
def test_the_token_that_ended_a_turn_is_no_part_of_its_text(codec: ChatCodec, closing: str) -> None:
    turn = codec.parse(codec.encode_written(f"Done.{closing}"))
    assert (turn.reasoning if opens_thinking(codec) else turn.content) == "Done."


def test_a_turn_of_nothing_is_empty(codec: ChatCodec) -> None:
    assert codec.parse(codec.encode_turn("", reasoning="Only a thought.")).is_empty
    assert codec.parse([codec.end_of_turn_id]).is_empty
    assert codec.parse([]).is_empty


def test_a_read_turn_as_history_is_what_was_written(codec: ChatCodec) -> None:
    message = codec.parse(codec.encode_turn("Text.", [("look_up", {"id": "1"})])).as_message()
    assert message["content"] == "Text."
    assert [call["function"] for call in message["tool_calls"]] == [{"name": "look_up", "arguments": {"id": "1"}}]


# Thinking ------------------------------------------------------------------------------------------------------------


def test_thinking_is_never_in_the_content(rewriting: ChatCodec) -> None:
    turn = rewriting.parse(rewriting.encode_turn("Yes.", [("look_up", {})], "A thought.\n\nAnother."))
    assert (turn.reasoning, turn.content) == ("A thought.\n\nAnother.", "Yes.")
    assert "thought" not in turn.raw
    assert turn.as_message()["reasoning_content"] == "A thought.\n\nAnother."


def test_unfinished_thinking_is_thinking(rewriting: ChatCodec) -> None:
    whole = rewriting.encode_turn("Yes.", [("look_up", {})], "A thought with <tool_call> in it.")
    end = whole.index(rewriting.encode_written("</think>")[0])
    for cut in range(end - 3, end + 1):
        turn = rewriting.parse(whole[:cut])
        assert turn.is_empty
        assert turn.reasoning
        assert turn.reasoning in "A thought with <tool_call> in it."


def test_a_call_written_inside_the_thinking_is_not_made(rewriting: ChatCodec) -> None:
    opening = "" if opens_thinking(rewriting) else "<think>\n"
    thought = 'I could <tool_call>\n{"name": "change", "arguments": {}}\n</tool_call>'
    turn = rewriting.parse(rewriting.encode_written(f"{opening}{thought}\n</think>\n\nNo.<|im_end|>"))
    assert (turn.content, turn.calls, turn.reasoning) == ("No.", [], thought)


THOUGHT = '<tool_call>\n{"name": "change", "arguments": {}}\n</tool_call>'
MADE = '<tool_call>\n{"name": "look_up", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize(
    ("written", "statuses"),
    [
        (f"<think>{THOUGHT}</think>", ["inside_thinking"]),
        (f"<think>first</think>{MADE}", [OK]),
        (f"<think>{THOUGHT}", ["inside_thinking"]),
        (f"Text.<think>{THOUGHT}</think>{MADE}", ["inside_thinking", OK]),
        (f"{MADE}<think>{THOUGHT}{THOUGHT}</think>", [OK, "inside_thinking", "inside_thinking"]),
        (f"{THOUGHT}</think>{MADE}", ["inside_thinking", OK]),
        (f"<think>a</think><think>{THOUGHT}</think>{MADE}", ["inside_thinking", OK]),
        ('<tool_call>\n{"name": "look_up", "arguments": {"x": "<think>"}}\n</tool_call>' + MADE, [OK, OK]),
    ],
)
def test_a_call_inside_a_further_thinking_block_is_not_made(
    rewriting: ChatCodec, written: str, statuses: list[str]
) -> None:
    opening = "" if opens_thinking(rewriting) else "<think>"
    turn = rewriting.parse(rewriting.encode_written(f"{opening}\nA thought.\n</think>\n\n{written}<|im_end|>"))
    assert turn.reasoning is not None
    assert [call.status for call in turn.calls] == statuses
    assert [call.name for call in turn.calls if call.status == OK] == ["look_up"] * statuses.count(OK)
    assert all(list(call.arguments) == [MALFORMED_ARGUMENT] for call in turn.calls if call.status != OK)


def test_text_before_an_opening_tag_makes_it_text(embedded: ChatCodec) -> None:
    turn = embedded.parse(embedded.encode_written("I say <think>x</think>."))
    assert (turn.reasoning, turn.content) == (None, "I say <think>x</think>.")


# Malformed calls -----------------------------------------------------------------------------------------------------

MALFORMED = {
    "broken JSON": ('{"name": "look_up", "arguments": {"id": }}', "look_up", "invalid_json"),
    "no JSON": ("look_up(id=1)", INVALID_CALL_NAME, "invalid_json"),
    "nothing": ("", INVALID_CALL_NAME, "invalid_json"),
    "two objects": ('{"name": "look_up", "arguments": {}} {}', "look_up", "invalid_json"),
    "a list": ('["look_up", {}]', INVALID_CALL_NAME, "missing_name"),
    "no name": ('{"arguments": {"id": 1}}', INVALID_CALL_NAME, "missing_name"),
    "no name but an argument called name": ('{"arguments": {"name": "Bob"}}', INVALID_CALL_NAME, "missing_name"),
    "an empty name": ('{"name": "", "arguments": {}}', INVALID_CALL_NAME, "missing_name"),
    "a name that is no text": ('{"name": {"look_up": 1}, "arguments": {}}', INVALID_CALL_NAME, "missing_name"),
    "arguments in a list": ('{"name": "look_up", "arguments": [1]}', "look_up", "arguments_not_an_object"),
    "arguments in a string": ('{"name": "look_up", "arguments": "{}"}', "look_up", "arguments_not_an_object"),
    "arguments null": ('{"name": "look_up", "arguments": null}', "look_up", "arguments_not_an_object"),
    "not a number": ('{"name": "look_up", "arguments": {"x": NaN}}', "look_up", "invalid_json"),
    "infinity": ('{"name": "look_up", "arguments": {"x": [-Infinity]}}', "look_up", "invalid_json"),
    "a number too large": ('{"name": "look_up", "arguments": {"x": 1e999}}', "look_up", "invalid_json"),
    "half a surrogate pair": ('{"name": "look_up", "arguments": {"x": "\\ud83d"}}', "look_up", "invalid_json"),
    "half a surrogate pair as key": ('{"name": "look_up", "arguments": {"\\udc00": 1}}', "look_up", "invalid_json"),
    "half a surrogate pair as name": ('{"name": "\\ud83d", "arguments": {}}', INVALID_CALL_NAME, "invalid_json"),
    "a name in escapes": ('{"name": "look\\u005fup", "arguments": {"x": NaN}}', "look_up", "invalid_json"),
    "another name before the name": ('{"arguments": {"name": NaN}, "name": "look_up"}', "look_up", "invalid_json"),
    "no arguments": ('{"name": "look_up"}', "look_up", "missing_arguments"),
    "arguments under another name": ('{"name": "look_up", "parameters": {"x": 1}}', "look_up", "missing_arguments"),
    "arguments beside the name": ('{"name": "look_up", "x": 1}', "look_up", "missing_arguments"),
    "a key that no call has": ('{"name": "look_up", "arguments": {}, "x": 1}', "look_up", "unknown_key"),
    "a name twice": ('{"name": "look_up", "name": "change", "arguments": {}}', "change", "duplicate_key"),
    "arguments twice": ('{"name": "look_up", "arguments": {}, "arguments": {"x": 1}}', "look_up", "duplicate_key"),
    "an argument twice": ('{"name": "look_up", "arguments": {"x": 1, "x": 2}}', "look_up", "duplicate_key"),
    "a second opening tag": ('<tool_call>{"name": "look_up", "arguments": {}}', "look_up", "invalid_json"),
    "nested too deep": (
        '{"name": "look_up", "arguments": {"x": ' + "[" * MAX_NESTING + "]" * MAX_NESTING + "}}",
        "look_up",
        "nested_too_deep",
    ),
    "brackets by the thousand": ('{"name": "look_up", "arguments": {"x": ' + "[" * 50_000, "look_up", "unreadable"),
    "digits by the thousand": (
        '{"name": "look_up", "arguments": {"x": ' + "7" * 5000 + "}}",
        "look_up",
        "unreadable",
    ),
}


@pytest.mark.parametrize(("block", "name", "status"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_call_keeps_its_name_and_its_text(embedded: ChatCodec, block: str, name: str, status: str) -> None:
    written = f"<tool_call>\n{block}\n</tool_call>"
    turn = embedded.parse(embedded.encode_written(f"{written}<|im_end|>"))
    assert [(call.name, call.status) for call in turn.calls] == [(name, status)]
    assert set(turn.calls[0].arguments) == {MALFORMED_ARGUMENT}
    assert block in turn.calls[0].arguments[MALFORMED_ARGUMENT]
    assert turn.as_message() == {"role": "assistant", "content": written}


def test_arguments_may_be_nested_up_to_the_limit(embedded: ChatCodec) -> None:
    value: Any = 1
    for _ in range(MAX_NESTING - 1):
        value = [value]
    turn = embedded.parse(embedded.encode_turn(calls=[("look_up", {"x": value})]))
    assert [(call.status, call.arguments) for call in turn.calls] == [(OK, {"x": value})]


def test_a_malformed_call_spares_its_neighbours(codec: ChatCodec) -> None:
    good = '<tool_call>\n{"name": "look_up", "arguments": {"id": "1"}}\n</tool_call>'
    bad = '<tool_call>\n{"name": "change", "arguments": {\n</tool_call>'
    thought = "</think>" if opens_thinking(codec) else ""
    turn = codec.parse(codec.encode_written(f"{thought}Text.\n{good}\n{bad}\n{good}<|im_end|>"))
    assert turn.content == "Text."
    assert [(call.name, call.status) for call in turn.calls] == [
        ("look_up", OK),
        ("change", "invalid_json"),
        ("look_up", OK),
    ]


@given(content=TEXT, calls=CALLS.filter(bool), share=st.floats(0, 1, exclude_max=True))
@some
def test_a_turn_cut_by_length_never_yields_a_call_that_was_not_written(
    embedded: ChatCodec, content: str, calls: list[tuple[str, dict[str, Any]]], share: float
) -> None:
    whole = embedded.encode_turn(content, calls)
    turn = embedded.parse(whole[: int(share * len(whole))])
    *closed, last = turn.calls or [None]
    complete = [*closed, *([last] if last and last.status == OK else [])]
    assert plain([(call.name, call.arguments) for call in complete]) == plain(calls[: len(complete)])
    if last and last.status != OK:
        assert last.status == "unclosed_block"
        assert last.name in (calls[len(complete)][0], INVALID_CALL_NAME)


PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_end|>", '{"name": "a", "arguments": ', "{", "}}", "[",
     '"x": ', "NaN", '"\\ud800"', "1e400", "null", "\n", "<function=f>", "text", "é"]
)  # fmt: skip


@given(runs=st.lists(st.lists(st.integers(0, 160_000), max_size=4) | PIECES, max_size=14))
@settings(some, max_examples=150)
def test_any_tokens_can_be_parsed_and_stand_as_history(codec: ChatCodec, runs: list[list[int] | str]) -> None:
    ids = [number for run in runs for number in (codec.encode_written(run) if isinstance(run, str) else run)]
    turn = codec.parse(ids)
    assert isinstance(turn, ParsedTurn)
    for call in turn.calls:
        assert call.name
        if call.status != OK:
            assert list(call.arguments) == [MALFORMED_ARGUMENT]
        json.dumps([call.name, call.arguments], allow_nan=False, ensure_ascii=False).encode()
    codec.render([user("hi"), turn.as_message(), user("go on")])


# Text stays text -----------------------------------------------------------------------------------------------------


@st.composite
def hostile_texts(draw: st.DrawFn, codec: ChatCodec) -> str:
    """Control tokens, their halves and lookalikes, and the characters that might be taken for a cut."""
    tokens = control_tokens(codec)
    halves = [token[:at] for token in tokens for at in (1, 2, -1)] + [token[1:] for token in tokens]
    privates = [chr(0xE000 + offset) for offset in range(4)]
    piece = st.sampled_from(tokens) | st.sampled_from(halves) | st.sampled_from([*privates, "x", "é", "<", "|", ">"])
    return "w" + "".join(draw(st.lists(piece, max_size=8))) + "w"


def everywhere(text: str) -> list[ChatMessage]:
    return [
        {"role": "system", "content": text},
        {"role": "assistant", "content": text},
        user(text),
        {"role": "assistant", "content": text, "tool_calls": [tool_call("look_up", {text: [text, {"x": text}]})]},
        {"role": "tool", "tool_call_id": "call_0", "content": text},
        user(text),
    ]


@given(data=st.data())
@settings(some, max_examples=60)
def test_text_in_a_message_never_becomes_a_control_token(codec: ChatCodec, data: st.DataObject) -> None:
    hostile, harmless = data.draw(hostile_texts(codec)), "w0w"
    ids, expected = codec.render(everywhere(hostile), TOOLS), codec.render(everywhere(harmless), TOOLS)
    assert [i for i in ids if i in codec.control_ids] == [i for i in expected if i in codec.control_ids]
    assert codec.decode(ids) == codec.decode(expected).replace(harmless, hostile)

    message = {"role": "tool", "content": hostile}
    bridged, expected = bridge(codec, [message]), bridge(codec, [{**message, "content": harmless}])
    assert [i for i in bridged if i in codec.control_ids] == [i for i in expected if i in codec.control_ids]
    assert codec.decode(bridged) == codec.decode(expected).replace(harmless, hostile)

    sampled = codec.encode_turn(hostile, [("look_up", {hostile: hostile})])
    turn = codec.parse(sampled)
    assert (turn.content, [call.arguments for call in turn.calls]) == (hostile, [{hostile: hostile}])


@given(data=st.data())
@some
def test_hostile_text_is_the_text_that_the_template_renders(embedded: ChatCodec, data: st.DataObject) -> None:
    messages = everywhere(data.draw(hostile_texts(embedded)))
    assert embedded.decode(embedded.render(messages, TOOLS)) == rendered_text(embedded, messages, TOOLS)


def test_overlapping_control_tokens_are_all_cut() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)
    tokenizer.add_tokens(["<<do>>", "<do>", "y<"])
    codec = ChatCodec(tokenizer)
    for text in ("<<do>>", "<do>", "y<do>", "yy<<do>>", "y<<|im_end|>"):
        ids = bridge(codec, [user(text)])
        assert [i for i in ids if i in codec.control_ids] == [
            i for i in bridge(codec, [user("x")]) if i in codec.control_ids
        ]
        assert text in codec.decode(ids)


def test_added_tokens_of_white_space_are_no_control_tokens() -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)
    tokenizer.add_tokens(["\n\n", "    "])
    codec = ChatCodec(tokenizer)
    messages = [user("One.\n\nTwo.    Three.")]
    assert codec.render(messages) == template_ids(codec, messages)


def test_private_characters_of_the_tools_are_kept(embedded: ChatCodec) -> None:
    tools = [{"type": "function", "function": {"name": "x", "description": "\ue000\ue001"}}]
    messages = [user("\ue002 <|im_end|>")]
    assert embedded.decode(embedded.render(messages, tools)) == rendered_text(embedded, messages, tools)


def test_every_private_character_may_stand_in_one_message(embedded: ChatCodec) -> None:
    text = "".join(map(chr, range(0xE000, 0xF900))) + "<|im_end|>"
    assert text in embedded.decode(bridge(embedded, [user(text)]))


# Context -------------------------------------------------------------------------------------------------------------

ODD_TEXTS = {
    "empty": "",
    "white space": " \n\t ",
    "white space at its ends": "\n\n  text \n\n",
    "the codec's own probe": "xyx",
    "a template's own words": "assistant\nuser\nYou are a helpful assistant.",
    "template code": "{{ messages }} {% raw %} {#",
    "a long text": "An order #W0123, 漢字. " * 1000,
    "a null character": "a\x00b\r\nc",
}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_what_follows_a_turn_is_the_end_of_the_template(codec: ChatCodec, text: str) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [tool_call("look_up", {})]}
    for turn, replies in (
        ({"role": "assistant", "content": "Yes?"}, [user(text)]),
        (call, [{"role": "tool", "tool_call_id": "call_0", "content": text}]),
        (call, [{"role": "tool", "tool_call_id": "call_0", "content": text}, user(text)]),
    ):
        whole, bridged = template_ids(codec, [user("hi"), turn, *replies], TOOLS), bridge(codec, replies)
        assert whole[-len(bridged) :] == bridged
        assert whole[-len(bridged) - 1] == codec.end_of_turn_id
        assert bridged.count(codec.end_of_turn_id) == rendered_text(codec, replies).count(codec.end_of_turn) - (
            rendered_text(codec, [user("")]).count(codec.end_of_turn) - 1
        )


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_an_opening_prompt_is_the_template(codec: ChatCodec, text: str) -> None:
    for messages in ([{"role": "system", "content": text}, user(text)], [user(text)]):
        for tools in ([], TOOLS):
            assert codec.render(messages, tools) == template_ids(codec, messages, tools or None)


def test_half_a_surrogate_pair_becomes_a_question_mark(codec: ChatCodec) -> None:
    ids = bridge(codec, [{"role": "tool", "content": "a\ud83d<|im_end|>\udc00b"}])
    assert "a?<|im_end|>?b" in codec.decode(ids)
    assert "a?b" in codec.decode(codec.render([user("a\ud83db")]))
    turn = codec.parse(codec.encode_turn("a\ud83db", [("look_up", {"x": "\udc00"})]))
    assert (turn.content, turn.calls[0].arguments) == ("a?b", {"x": "?"})


def test_callers_may_change_what_they_get(embedded: ChatCodec) -> None:
    messages = [user("Twice the same, <|im_end|> and all.")]
    before = embedded.render(messages)
    embedded.render(messages).clear()
    assert embedded.render(messages) == before
    assert messages == [user("Twice the same, <|im_end|> and all.")]


def test_an_id_without_a_token_is_found_and_is_no_text(codec: ChatCodec) -> None:
    ids = codec.encode_turn("Hello.")
    assert codec.unknown_ids(range(codec.tokenizer_size)) == []
    beyond = [codec.tokenizer_size, 2**31 - 1, -1]
    assert codec.unknown_ids([*ids, *beyond]) == beyond
    turn = codec.parse([codec.tokenizer_size, *ids])
    assert turn == codec.parse(ids)


@given(text=st.text(max_size=300))
@some
def test_text_becomes_the_tokens_that_the_tokenizer_itself_makes_of_it(codec: ChatCodec, text: str) -> None:
    assume(text.isprintable() or text.encode("utf-8", "ignore").decode() == text)
    assert codec.encode_written(text) == codec._tokenizer.encode(text, add_special_tokens=False)


LARGE_RESULT = json.dumps([{"flight_number": "HAT001", "seats": {"economy": 3}, "date": None}] * 20_000)
"""As large as what airline's `search_onestop_flight` can answer."""


def test_a_huge_tool_result_is_tokenized_and_read_while_other_threads_run(embedded: ChatCodec) -> None:
    beats: list[float] = []
    done = threading.Event()

    def beat() -> None:
        while not done.wait(0.001):
            beats.append(time.perf_counter())

    def runs_beside(work: Callable[[], Any]) -> bool:
        """A busy machine may hold the other thread up for once."""
        return any(longest_pause(work) < 0.5 for _ in range(5))

    def longest_pause(work: Callable[[], Any]) -> float:
        """Of the other thread, as a share of the time that the work took."""
        start = time.perf_counter()
        work()
        end = time.perf_counter()
        moments = [start, *(moment for moment in beats if start < moment < end), end]
        return max(after - before for before, after in pairwise(moments)) / (end - start)

    other = threading.Thread(target=beat)
    other.start()
    try:
        message = {"role": "tool", "tool_call_id": "call_0", "content": LARGE_RESULT}
        assert runs_beside(lambda: bridge(embedded, [message]))
        ids = embedded.encode_written(LARGE_RESULT)
        assert runs_beside(lambda: embedded.decode(ids))
    finally:
        done.set()
        other.join()


def test_large_texts_do_not_pile_up_in_the_memory_of_the_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "_CACHE_BYTES", 200_000)
    codec = ChatCodec.load()
    for number in range(20):
        content = f"{number}{LARGE_RESULT[:20_000]}"
        bridge(codec, [{"role": "tool", "tool_call_id": "call_0", "content": content}])
        assert codec._encode_plain.size <= 200_000


# Threads, loads ------------------------------------------------------------------------------------------------------


def test_many_threads_get_what_one_gets() -> None:
    codec = ChatCodec.load()

    def work(number: int) -> Any:
        text = f"Number {number % 40} <|im_end|> " * (1 + number % 7)
        sampled = codec.encode_turn(text, [("look_up", {"id": text})])
        return (
            codec.render([user(text)], TOOLS),
            bridge(codec, [{"role": "tool", "content": text}]),
            codec.parse(sampled),
            codec.parse(sampled[:-4]),
        )

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(work, range(400)))
    assert together == [work(number) for number in range(400)]


@pytest.mark.parametrize("name", ["embedded", "Qwen3-0.6B"])
def test_two_loads_have_the_same_fingerprints(load_codec: Callable[[str], ChatCodec], name: str) -> None:
    codec = load_codec(name)
    again = ChatCodec.load(None if name == "embedded" else codec.name)
    assert again.tokenizer_fingerprint == codec.tokenizer_fingerprint
    assert again.template_fingerprint == codec.template_fingerprint


def test_a_change_of_template_or_vocabulary_changes_its_fingerprint_alone(embedded: ChatCodec) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)
    tokenizer.chat_template += "{#- a comment -#}"
    commented = ChatCodec(tokenizer, name=embedded.name)
    assert commented.tokenizer_fingerprint == embedded.tokenizer_fingerprint
    assert commented.template_fingerprint != embedded.template_fingerprint
    tokenizer.add_tokens(["<more>"])
    grown = ChatCodec(tokenizer, name="of another name")
    assert grown.tokenizer_fingerprint != commented.tokenizer_fingerprint
    assert grown.template_fingerprint == commented.template_fingerprint


def test_each_real_model_has_fingerprints_of_its_own(load_codec: Callable[[str], ChatCodec]) -> None:
    names = ("embedded", "Qwen2.5-7B-Instruct", "Qwen3-0.6B", "Qwen3-4B-Instruct-2507", "Qwen3-4B-Thinking-2507")
    codecs = [load_codec(name) for name in names]
    assert len({codec.template_fingerprint for codec in codecs}) == 5
    assert len({codec.tokenizer_fingerprint for codec in codecs}) == 3  # Qwen3's three share one tokenizer
