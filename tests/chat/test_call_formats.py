"""In every tool-call format a call is exactly a call: what lacks a part, or has one too many, is never made."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from renderers.parsers import TOOL_PARSERS

from rollout_service.chat.call_formats import FORMATS, problem
from rollout_service.chat.codec import EMBEDDED_TOKENIZER
from rollout_service.chat.parsed_turn import OK, ParsedCall, checked

some = settings(max_examples=60, deadline=None)

TAGS = [
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
]


@pytest.fixture(scope="module")
def parse() -> Callable[[str, str], list[ParsedCall]]:
    """The calls that a format's parser finds in what a policy wrote."""
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(EMBEDDED_TOKENIZER)
    tokenizer.add_tokens(TAGS)
    parsers = {name: TOOL_PARSERS[name](tokenizer) for name in FORMATS}

    def parsed(name: str, written: str) -> list[ParsedCall]:
        ids = tokenizer.encode(written, add_special_tokens=False)
        return [checked(call, name) for call in parsers[name].extract(ids)[1]]

    return parsed


def pieces(format: str, name: str, arguments: dict[str, Any]) -> list[str]:
    """A call as the format writes it, in the parts that it needs, each once."""
    if format == "qwen3":
        return ["<tool_call>", "{", '"name": ', json.dumps(name), ", ", '"arguments": ', json.dumps(arguments), "}",
                "</tool_call>"]  # fmt: skip
    if format == "qwen3.5":
        parts = ["<tool_call>", f"<function={name}>"]
        for key, value in arguments.items():
            parts += [f"<parameter={key}>", json.dumps(value), "</parameter>"]
        return [*parts, "</function>", "</tool_call>"]
    if format == "glm":
        parts = ["<tool_call>", name]
        for key, value in arguments.items():
            parts += ["<arg_key>", key, "</arg_key>", "<arg_value>", json.dumps(value), "</arg_value>"]
        return [*parts, "</tool_call>"]
    begin, end = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    return [begin, "function", "<｜tool▁sep｜>", name, "\n```json\n", json.dumps(arguments), "\n```", end]


def test_every_parser_that_a_codec_may_choose_has_its_format():
    assert set(FORMATS) == set(TOOL_PARSERS)


NAMES = st.text("abc_1", min_size=1, max_size=6).filter(lambda name: not name.isdigit())
VALUES = st.none() | st.booleans() | st.integers() | st.text("ab \n{}<>/", max_size=8) | st.lists(st.integers())
ARGUMENTS = st.dictionaries(NAMES, VALUES, max_size=3)


@pytest.mark.parametrize("format", FORMATS)
@given(name=NAMES, arguments=ARGUMENTS)
@some
def test_a_whole_call_is_read_as_it_was_written(parse, format: str, name: str, arguments: dict[str, Any]):
    assert parse(format, "".join(pieces(format, name, arguments))) == [ParsedCall(name, arguments, OK)]


@pytest.mark.parametrize("format", FORMATS)
@given(
    name=NAMES,
    arguments=st.dictionaries(NAMES, st.integers(), min_size=1, max_size=3),
    data=st.data(),
)
@some
def test_a_call_that_lacks_one_of_its_parts_is_not_made(parse, format, name, arguments, data):
    parts = pieces(format, name, arguments)
    without = data.draw(st.integers(0, len(parts) - 1))
    calls = parse(format, "".join(parts[:without] + parts[without + 1 :]))
    assert OK not in [call.status for call in calls]


@pytest.mark.parametrize("format", FORMATS)
@given(name=NAMES, arguments=ARGUMENTS, junk=st.sampled_from(["x", "{}", "<x>", "</x>", "1 "]), data=st.data())
@some
def test_a_call_with_something_between_its_parts_is_not_made(parse, format, name, arguments, junk, data):
    parts = pieces(format, name, arguments)
    at = data.draw(st.integers(1, len(parts) - 1))
    calls = parse(format, "".join([*parts[:at], junk, *parts[at:]]))
    whole = ParsedCall(name, arguments, OK)
    assert whole not in calls


KEYS = st.sampled_from(["name", "arguments", "Name", "args", "parameters", "id", "type", ""])


@given(pairs=st.lists(st.tuples(KEYS, st.sampled_from(['"a"', "{}", '{"x": 1}', "1", "null"])), max_size=4))
@settings(some, max_examples=300)
def test_a_json_call_has_a_name_and_arguments_and_nothing_else(parse, pairs: list[tuple[str, str]]):
    written = ", ".join(f'"{key}": {value}' for key, value in pairs)
    (call,) = parse("qwen3", f"<tool_call>{{{written}}}</tool_call>")
    given = dict(pairs)
    exact = sorted(key for key, _ in pairs) == ["arguments", "name"]
    right = exact and given["name"] == '"a"' and given["arguments"].startswith("{")
    assert (call.status == OK) is right
    if right:
        assert (call.name, call.arguments) == ("a", json.loads(given["arguments"]))


@pytest.mark.parametrize(
    ("format", "written", "status"),
    [
        ("qwen3.5", "<tool_call><function=a><parameter=x>1</function></tool_call>", "malformed_structure"),
        ("qwen3.5", "<tool_call><function=a><parameter=x>1</parameter></tool_call>", "malformed_structure"),
        ("qwen3.5", "<tool_call><function=a>x=1</function></tool_call>", "malformed_structure"),
        (
            "qwen3.5",
            "<tool_call><function=a><parameter=x>1</parameter><parameter=x>2</parameter></function></tool_call>",
            "duplicate_key",
        ),
        ("glm", '<tool_call>a {"x": 1}</tool_call>', "malformed_structure"),
        ("glm", "<tool_call>a x=1</tool_call>", "malformed_structure"),
        (
            "deepseek-v3",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "missing_arguments",
        ),
    ],
)
def test_what_the_parsers_pass_over_has_a_status_of_its_own(parse, format, written, status):
    (call,) = parse(format, written)
    assert call.status == status


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("qwen3.5", "<function=a>" + "<parameter=x>1</parameter>" * 20_000),
        ("qwen3.5", "<function=a>" + "<parameter=x>" * 20_000),
        ("glm", "a" + "<arg_key>x</arg_key><arg_value>1</arg_value>" * 20_000 + "<arg_key>"),
        ("deepseek-v3", "function<｜tool▁sep｜>a\n" + "```json\n" * 50_000),
    ],
)
def test_a_long_text_that_is_no_call_is_judged_in_linear_time(format, text):
    assert problem(format, text, "a", {}) == "malformed_structure"  # were the time not linear, it would not return
