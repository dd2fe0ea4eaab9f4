"""What a tokenizer or a chat template lacks is said in words that its user can act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rollout_service.chat.codec import ChatCodec
from rollout_service.errors import CodecError
from tests.support.family_templates import tokenizer


def refusal(made: Any) -> str:
    with pytest.raises(CodecError) as caught:
        ChatCodec(made, name="theirs")
    return str(caught.value)


def test_a_template_that_raises_is_quoted() -> None:
    made = tokenizer("parameters")
    made.chat_template = "{{- raise_exception('Only text is supported.') -}}"
    said = refusal(made)
    assert "cannot render a conversation of ['system', 'user', 'assistant']. It says: Only text is supported." in said


def test_a_template_that_takes_no_tools_is_told_from_one_that_renders_nothing() -> None:
    made = tokenizer("parameters")
    made.chat_template = (
        "{%- if tools -%}{{- raise_exception('No tools.') -}}{%- endif -%}"
        + made.chat_template.replace("~ (tools | tojson)", "")
    )
    said = refusal(made)
    assert "but not with tools. It says: No tools." in said
    assert "trained to call tools" in said


def test_an_argument_that_the_format_cannot_express_is_named() -> None:
    made = tokenizer("parameters")
    written = "value | tojson if value is mapping or (value is iterable and value is not string) else value | string"
    assert written in made.chat_template
    made.chat_template = made.chat_template.replace(written, "value | string")
    said = refusal(made)
    assert "the argument ['1', 'é ü 漢字 🙂', 'null'] is read as \"['1', 'é ü 漢字 🙂', 'null']\"" in said
    assert "lists and mappings as JSON" in said


def test_a_turn_that_ends_in_text_names_the_text_and_how_it_becomes_a_token() -> None:
    made = tokenizer("parameters")
    made.chat_template = made.chat_template.replace("<|im_end|>", "</turn>")
    said = refusal(made)
    assert "ends an assistant turn with '</turn>\\n', which holds no added token" in said
    assert "add_special_tokens" in said


def test_a_tokenizer_with_code_of_its_own_is_refused_with_the_way_around(tmp_path: Path) -> None:
    names = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "own.py").write_text("raise SystemExit\n")
    with pytest.raises(CodecError, match=r"Python code of its own, which this service does not run.*tokenizer\.json"):
        ChatCodec.load(str(tmp_path))


def test_a_tokenizer_without_a_fast_form_is_refused_with_how_to_save_one(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizer"}))
    with pytest.raises(CodecError, match=r"has no tokenizer\.json, and none can be made of.*save_pretrained"):
        ChatCodec.load(str(tmp_path))
