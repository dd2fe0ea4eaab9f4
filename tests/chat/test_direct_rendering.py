"""A template is rendered directly only where that gives what the tokenizer's own rendering gives."""

from __future__ import annotations

from typing import Any

import jinja2
import numpy as np
import pytest

from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.direct_rendering import DirectRendering
from rollout_service.chat.learning import OPENING, PROBE_TOOLS
from rollout_service.chat.message_form import ChatMessage
from rollout_service.chat.parsed_turn import tool_call
from rollout_service.chat.template import ChatTemplate
from rollout_service.chat.tokenizer_files import load_tokenizer
from tests.families.conversations import Writer
from tests.families.play import abilities


def renamed(tokenizer: Any, **methods: Any) -> Any:
    """The tokenizer with some methods of its class replaced."""
    tokenizer.__class__ = type("Changed", (type(tokenizer),), methods)
    return tokenizer


def test_the_direct_rendering_gives_the_tokenizers_text(codec: ChatCodec) -> None:
    template = codec._template
    assert template.direct is not None
    for seed in range(5):
        writer = Writer(seed, abilities(codec))
        conversation = list(writer.opening())
        for turn in writer.turns():
            conversation += [turn.message(), *turn.answers()]
            for tools in (PROBE_TOOLS, []):
                ours = template.text(conversation, tools, generation_prompt=True)
                assert ours == template.official.text(conversation, tools, generation_prompt=True)


def test_a_tokenizer_that_renders_in_its_own_way_is_asked_itself() -> None:
    def apply_chat_template(self: Any, messages: Any, **given: Any) -> str:
        text: str = super(type(self), self).apply_chat_template(messages, **given)
        return "Own. " + text

    codec = ChatCodec(renamed(load_tokenizer(None)[0], apply_chat_template=apply_chat_template))
    assert codec._template.direct is None
    assert codec.decode(codec.render(OPENING)).startswith("Own. <|im_start|>")


def test_a_version_of_transformers_that_compiles_in_another_way_is_asked_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("transformers.utils.chat_template_utils._compile_jinja_template")
    monkeypatch.setattr(type(load_tokenizer(None)[0]), "apply_chat_template", lambda *_, **__: "rendered")
    template = ChatTemplate(load_tokenizer(None)[0], "x").made_faster([OPENING], PROBE_TOOLS)
    assert template.direct is None
    assert template.text(OPENING) == "rendered"


def test_the_sandbox_refuses_what_is_not_safe_also_the_second_time() -> None:
    tokenizer = load_tokenizer(None)[0]
    tokenizer.chat_template = "{{ messages[0].content.__class__.__mro__ }}"
    direct = DirectRendering(tokenizer, None, {})
    for _ in range(2):
        with pytest.raises(jinja2.exceptions.SecurityError):
            direct(OPENING, [], True)


def test_what_a_template_asks_a_message_for_is_what_the_tokenizer_finds() -> None:
    tokenizer = load_tokenizer(None)[0]
    tokenizer.chat_template = (
        "{%- for m in messages %}{{ m.role }} {{ m.missing }} {{ m.missing is defined }} {{ m.items is defined }} "
        "{{ m.get('items') }} {{ m.values() | list }} {{ m.nested.pop }} {{ m.nested.x.y }}{%- endfor %}"
    )
    direct = DirectRendering(tokenizer, None, {})
    nested = {"pop": "key", "x": {"y": None}}
    messages: list[ChatMessage] = [{"role": "user", "items": "key", "content": "hi", "nested": nested}]
    assert direct(messages, [], False) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_what_is_no_plain_json_is_left_to_the_tokenizer(embedded: ChatCodec) -> None:
    call: ChatMessage = {"role": "assistant", "content": "", "tool_calls": [tool_call("look_up", {"n": np.int64(7)})]}
    assert '{"n": 7}' in embedded._template.text([*OPENING, call], PROBE_TOOLS)
