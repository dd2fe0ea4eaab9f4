"""A codec either gives the tokens that its chat template gives, or is refused with the reason and the place."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from rollout_service.chat.codec import EMBEDDED_TOKENIZER, ChatCodec
from rollout_service.chat.parsed_turn import tool_call
from rollout_service.errors import CodecError
from tests.support.bridge import bridge

GENERATION_PROMPT = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
TURN = "{{- '<|im_start|>' -}}{{- message.role -}}{{- '\\n' -}}{{- message.content or '' -}}"
CALL = "{%- for call in message.tool_calls or [] -%}"
THINKING = (
    "{%- if message.reasoning_content is defined -%}"
    "{{- '<think>\\n' ~ message.reasoning_content ~ '\\n</think>\\n' -}}{%- endif -%}"
)
RESULT = "{{- '<tool_response>\\n' -}}{{- message.content -}}"


def tokenizer(**edits: str) -> Any:
    """The embedded tokenizer, with parts of its chat template replaced: `TURN="…"` replaces what `TURN` holds."""
    embedded = transformers.AutoTokenizer.from_pretrained(EMBEDDED_TOKENIZER)
    for name, new in edits.items():
        assert embedded.chat_template.count(globals()[name]) == 1
        embedded.chat_template = embedded.chat_template.replace(globals()[name], new)
    return embedded


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(CodecError) as caught:
        ChatCodec(*arguments, **options)
    assert caught.value.remedy
    return caught.value.problem


# Templates that can be followed --------------------------------------------------------------------------------------


def test_templates_without_thinking_extend_history(extending: ChatCodec) -> None:
    assert (extending.rewrites_history, extending.supports_reasoning) == (False, False)


def test_templates_that_drop_earlier_thinking_rewrite_history(rewriting: ChatCodec) -> None:
    assert (rewriting.rewrites_history, rewriting.supports_reasoning) == (True, True)


def test_a_template_that_keeps_thinking_extends_history() -> None:
    codec = ChatCodec(tokenizer(TURN=TURN.replace("{{- message.content", f"{THINKING}{{{{- message.content")))
    assert (codec.rewrites_history, codec.supports_reasoning) == (False, True)


def test_a_template_without_text_beside_calls_is_followed() -> None:
    codec = ChatCodec(
        tokenizer(TURN=TURN.replace("message.content or ''", "'' if message.tool_calls else message.content"))
    )
    assert not codec.rewrites_history


# Templates that cannot -----------------------------------------------------------------------------------------------

NUMBERED = TURN.replace("message.role -", "message.role ~ (loop.index if message.role == 'user' else '') -")
COUNTING = {
    "numbers the user's messages": {"TURN": NUMBERED},
    "numbers the user's messages and forgets thinking": {
        "TURN": NUMBERED.replace(
            "{{- message.content", THINKING.replace(" -%}", " and loop.last -%}", 1) + "{{- message.content"
        )
    },
    "adds a word before the policy goes on, later": {
        "GENERATION_PROMPT": GENERATION_PROMPT.replace("{{-", "{{- '' if messages | length < 4 else 'Go on' -}}{{-", 1)
    },
    "writes later tool results otherwise": {
        "RESULT": RESULT.replace("\\n'", "\\n' ~ ('' if loop.index0 < 4 else 'again: ')")
    },
}


@pytest.mark.parametrize("edits", COUNTING.values(), ids=COUNTING)
def test_what_follows_a_turn_is_that_of_the_real_conversation(edits: dict[str, str]) -> None:
    codec = ChatCodec(tokenizer(**edits))
    history: list[dict[str, Any]] = [{"role": "system", "content": "Help."}, {"role": "user", "content": "Hello."}]
    for number in range(4):
        call = {"role": "assistant", "content": "", "tool_calls": [tool_call("look_up", {})]}
        text = {"role": "assistant", "content": f"{number}?"}
        for turn, reply in (
            (text, {"role": "user", "content": "Yes."}),
            (call, {"role": "tool", "tool_call_id": "call_0", "content": "{}"}),
        ):
            bridged = bridge(codec, [reply], [*history, turn])
            history += [turn, reply]
            assert codec.render(history)[-len(bridged) :] == bridged
            assert codec.render(history)[-len(bridged) - 1] == codec.end_of_turn_id


REFUSED = {
    "opens a turn otherwise than its generation prompt": (
        {"GENERATION_PROMPT": GENERATION_PROMPT.replace("assistant", "helper")},
        "writes a turn differently from how its generation prompt opens it",
    ),
    "leaves out what the policy says": (
        {"TURN": TURN.replace("message.content or ''", "'' if message.role == 'assistant' else message.content")},
        "holds no added token",
    ),
    "does not close a turn with calls": (
        {"CALL": "{%- if message.tool_calls -%}{{- '<endoftext>' -}}{%- break -%}{%- endif -%}" + CALL},
        "without its calls",
    ),
    "writes calls that no parser reads": ({"CALL": CALL.replace("message.tool_calls", "none")}, "without its calls"),
    "writes thinking in tags of its own": (
        {"TURN": TURN.replace("{{- message.content", THINKING.replace("think>", "thought>") + "{{- message.content")},
        "does not read back a text turn",
    ),
    **{
        case: ({"RESULT": RESULT.replace("message.content", f"message.content | {use}")}, "does not stay plain text")
        for case, use in {
            "takes characters out of a message": "replace('|', '')",
            "escapes what a message says": "tojson(ensure_ascii=True)",
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize(("edits", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_cannot_be_followed_is_refused(edits: dict[str, str], reason: str) -> None:
    assert reason in refusal(tokenizer(**edits))


def test_a_template_that_is_no_jinja_is_refused() -> None:
    broken = tokenizer()
    broken.chat_template = "{% for %}"
    assert "is no valid template: line 1: " in refusal(broken)


ONE_CALL = (
    "{%- if message.tool_calls and message.tool_calls | length > 1 -%}"
    "{{- raise_exception('One call only!') -}}{%- endif -%}"
)


def test_a_template_of_one_call_a_turn_is_followed_and_two_calls_are_malformed() -> None:
    codec = ChatCodec(tokenizer(CALL=ONE_CALL + CALL), tool_parser="learned")
    assert "One call only!" in codec.proof.impossible["two tool calls in one turn"]
    written = codec.decode(codec.encode_turn("", [("look_up", {})])[:-1])
    turn = codec.parse(codec.encode_written(f"{written}\n{written}{codec.end_of_turn}"))
    assert [call.status for call in turn.calls] == ["several_calls"]


FAMILIES = {
    "deepseek-v3.1": "learned",
    "glm-4.5": "learned",
    "gpt-oss": "harmony",
    "hermes-2-pro": "qwen3",
    "llama-3.1": "learned",
    "llama-3.2": "learned",
    "qwen2.5-instruct": "qwen3",
    "qwen3-coder": "learned",
    "qwen3-hybrid": "qwen3",
    "qwen3-instruct-2507": "qwen3",
    "qwen3-thinking-2507": "qwen3",
}


@pytest.mark.parametrize(("family", "parser"), FAMILIES.items())
def test_another_family_s_template_is_proved(shared: Callable[[str], Path], family: str, parser: str) -> None:
    """On Qwen3's tokenizer with the control tokens that the template writes."""
    assert ChatCodec(with_template_of(shared, family)).tool_parser == parser


@pytest.mark.parametrize("family", ["qwq-32b", "mistral-nemo-2407"])
def test_a_template_whose_turns_do_not_begin_as_its_prompt_ends_is_refused(
    shared: Callable[[str], Path], family: str
) -> None:
    assert "writes a turn differently" in refusal(with_template_of(shared, family))


def with_template_of(shared: Callable[[str], Path], family: str) -> Any:
    template = shared(f"chat_templates/{family}.jinja").read_text()
    qwen = transformers.AutoTokenizer.from_pretrained(shared("tokenizers/Qwen3-0.6B"))
    qwen.chat_template = template
    written = re.findall(r"<[|｜][^<>\s]+[|｜]>|</?arg_\w+>|\[/?[A-Z_]{4,}\]", template)
    qwen.add_tokens([*sorted(set(written)), "<s>", "</s>"])
    qwen.bos_token, qwen.eos_token = "<s>", "</s>"
    return qwen


# Tool parsers --------------------------------------------------------------------------------------------------------


def test_a_named_parser_is_taken_when_it_reads_the_template() -> None:
    assert not ChatCodec(tokenizer(), tool_parser="qwen3").rewrites_history


def test_a_named_parser_that_does_not_read_the_template_is_refused() -> None:
    assert "No tool-call parser (glm)" in refusal(tokenizer(), tool_parser="glm")


def test_an_unknown_parser_is_refused_with_those_there_are() -> None:
    with pytest.raises(CodecError, match=r"policy\.tool_parser: 'hermes'.*auto or one of qwen3, "):
        ChatCodec(tokenizer(), tool_parser="hermes")


# Tokenizers ----------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    bare = tokenizer()
    bare.chat_template = None
    assert refusal(bare, name="bare") == "The tokenizer 'bare' has no chat template."


def test_a_slow_tokenizer_is_refused() -> None:
    slow = transformers.ByT5Tokenizer()
    slow.chat_template = tokenizer().chat_template
    assert "has no fast version" in refusal(slow)


def test_a_tokenizer_whose_turns_end_in_plain_text_is_refused() -> None:
    plain = tokenizer()
    plain.chat_template = plain.chat_template.replace("<|im_end|>", "[END]")
    assert "'[END]\\n', which holds no added token" in refusal(plain)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "~/nowhere", "nowhere"])
def test_a_missing_folder_is_refused_by_its_name(path: str) -> None:
    with pytest.raises(CodecError, match=f"policy.tokenizer: there is no folder '{path}'"):
        ChatCodec.load(path)


@pytest.mark.parametrize("content", [None, "", "{", '{"version": "1.0"}'])
def test_a_folder_without_a_usable_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CodecError, match=r"policy\.tokenizer: no tokenizer can be loaded from"):
        ChatCodec.load(str(tmp_path))


def test_a_tokenizer_is_loaded_from_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer().save_pretrained(tmp_path / "models" / "mine")
    monkeypatch.chdir(tmp_path)
    assert ChatCodec.load("models/mine").name == "models/mine"
