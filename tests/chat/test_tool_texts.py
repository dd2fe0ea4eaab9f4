"""The kept texts of tools are those of tools with exactly this content."""

from __future__ import annotations

import copy
import json
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

import rollout_service.chat.tool_texts as tool_texts
from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.learning import OPENING, PROBE_TOOLS
from rollout_service.chat.tool_texts import ToolTexts

_SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from([0.0, -0.0, 1.0, "", "1", "é", "\ud800"])
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1", max_size=2), inner, max_size=3)
)
_TOOLS = st.lists(st.dictionaries(st.text("ab", max_size=2), _VALUES, max_size=3), min_size=1, max_size=3)


@settings(max_examples=40)
@given(st.lists(_TOOLS, min_size=1, max_size=6), st.sampled_from([{}, {"indent": 4}, {"sort_keys": True}]))
def test_every_part_of_the_tools_has_its_own_text(all_tools: list[list[dict[str, Any]]], options: Any) -> None:
    texts = ToolTexts(json.dumps)
    for tools in [*all_tools, *copy.deepcopy(all_tools)]:
        own = texts.own(tools)
        assert repr(own) == repr(tools)
        assert texts.to_json(own, **options) == json.dumps(tools, **options)
        for kept, tool in zip(own, tools, strict=True):
            assert texts.to_json(kept, **options) == json.dumps(tool, **options)
            for key, value in tool.items():
                assert texts.to_json(kept[key], **options) == json.dumps(value, **options)
        assert texts.to_json(tools, **options) == json.dumps(tools, **options), "the caller's own tools"


def test_a_prompt_has_the_tools_as_they_are_now(embedded: ChatCodec) -> None:
    tools = copy.deepcopy(PROBE_TOOLS)
    before = embedded.render(OPENING, tools)
    tools[0]["function"]["description"] = "Changed since."
    after = embedded.render(OPENING, tools)
    assert "Changed since." in embedded.decode(after)
    assert before == embedded.render(OPENING, PROBE_TOOLS) != after


def test_the_texts_of_few_tools_are_kept_and_the_others_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def to_json(value: Any) -> str:
        asked.append(value)
        return json.dumps(value)

    texts = ToolTexts(to_json)
    monkeypatch.setattr(tool_texts, "_MOST_SETS", 1)
    for tool in ({"a": 1}, {"b": 1}) * 2:
        assert texts.to_json(texts.own([tool])[0]) == json.dumps(tool)
    assert asked == [{"a": 1}, {"b": 1}, {"b": 1}]


class Text(str):
    pass


@pytest.mark.parametrize(
    "value",
    [np.int64(7), np.float32(0.5), np.array([7]), b"7", bytearray(b"7"), (7,), {7}, {7: 1}, Text("7"), [{"a": b"7"}]],
    ids=["int64", "float32", "array", "bytes", "bytearray", "tuple", "set", "number as key", "own text", "deep"],
)
def test_what_is_no_plain_json_is_given_as_it_is(value: Any) -> None:
    tools = [{"name": value}]
    assert ToolTexts(json.dumps).own(tools) is tools
