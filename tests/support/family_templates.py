"""Small chat templates, each in the style of a model family, on the embedded tokenizer.

They hold what makes the families differ: how a turn closes, how a call is written, which form of messages is taken, and
what is rewritten. Each is written for these tests.
"""

from __future__ import annotations

import functools
from typing import Any

import transformers

from rollout_service.chat.codec import EMBEDDED_TOKENIZER, ChatCodec

_SYSTEM = "{{- '<|im_start|>system\\n' ~ messages[0].content ~ '\\n' ~ (tools | tojson) ~ '<|im_end|>\\n' -}}"
_PROMPT = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"


def _chat(call: str, *, system: str = _SYSTEM, prompt: str = _PROMPT, between: str = "") -> str:
    """A template whose messages stand between <|im_start|> and <|im_end|>. `call` writes one call of a turn."""
    return (
        system
        + "{%- for message in messages[1:] -%}{{- '<|im_start|>' ~ message.role ~ '\\n' -}}"
        + "{%- if message.role == 'tool' -%}{{- '<result>' ~ message.content ~ '</result>' -}}"
        + "{%- else -%}{{- message.content or '' -}}"
        + "{%- for call in message.tool_calls or [] -%}"
        + f"{{%- if not loop.first -%}}{{{{- '{between}' -}}}}{{%- endif -%}}"
        + call
        + "{%- endfor -%}{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
        + prompt
    )


_XML_CALL = (
    "{{- '\\n<tool_call>\\n<function=' ~ call.function.name ~ '>\\n' -}}"
    "{%- for key, value in call.function.arguments | items -%}{{- '<parameter=' ~ key ~ '>\\n' -}}"
    "{{- value | tojson if value is mapping or (value is iterable and value is not string) else value | string -}}"
    "{{- '\\n</parameter>\\n' -}}{%- endfor -%}{{- '</function>\\n</tool_call>' -}}"
)
_KEYED = (
    "{{- '<|system|>\\n' ~ messages[0].content ~ (tools | tojson) -}}{%- for message in messages[1:] -%}"
    "{%- if message.role == 'user' -%}{{- '<|user|>\\n' ~ message.content -}}"
    "{%- elif message.role == 'tool' -%}"
    "{%- if loop.previtem.role != 'tool' -%}{{- '<|observation|>' -}}{%- endif -%}"
    "{{- '\\n<result>\\n' ~ message.content ~ '\\n</result>' -}}"
    "{%- else -%}{{- '<|assistant|>\\n<think>' -}}"
    "{{- message.reasoning_content if message.reasoning_content and loop.last else '' -}}{{- '</think>' -}}"
    "{%- if message.content -%}{{- '\\n' ~ message.content -}}{%- endif -%}"
    "{%- for call in message.tool_calls or [] -%}{{- '\\n<tool_call>' ~ call.function.name ~ '\\n' -}}"
    "{%- for key, value in call.function.arguments | items -%}"
    "{{- '<arg_key>' ~ key ~ '</arg_key>\\n<arg_value>' -}}{{- value if value is string else value | tojson -}}"
    "{{- '</arg_value>\\n' -}}{%- endfor -%}{{- '</tool_call>' -}}{%- endfor -%}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
_CHANNELS = (
    "{{- '<|start|>system<|message|>' ~ messages[0].content ~ (tools | tojson) ~ '<|end|>' -}}"
    "{%- set called = namespace(name=none) -%}{%- for message in messages[1:] -%}"
    "{%- if message.role == 'user' -%}{{- '<|start|>user<|message|>' ~ message.content ~ '<|end|>' -}}"
    "{%- elif message.role == 'tool' -%}"
    "{%- if called.name is none -%}{{- raise_exception('no call was made') -}}{%- endif -%}"
    "{{- '<|start|>functions.' ~ called.name ~ ' to=assistant<|message|>' ~ message.content | tojson ~ '<|end|>' -}}"
    "{%- else -%}{%- set last = loop.last and not add_generation_prompt -%}"
    "{%- if message.reasoning_content and (last or message.tool_calls) -%}"
    "{{- '<|start|>assistant<|channel|>analysis<|message|>' ~ message.reasoning_content ~ '<|end|>' -}}{%- endif -%}"
    "{%- if message.tool_calls -%}"
    "{%- if message.tool_calls | length > 1 -%}{{- raise_exception('one call a turn') -}}{%- endif -%}"
    "{%- set called.name = message.tool_calls[0].function.name -%}"
    "{{- '<|start|>assistant to=functions.' ~ called.name ~ '<|channel|>commentary json<|message|>' -}}"
    "{{- message.tool_calls[0].function.arguments | tojson ~ '<|call|>' -}}"
    "{%- else -%}{%- set called.name = none -%}{{- '<|start|>assistant<|channel|>final<|message|>' -}}"
    "{{- message.content ~ ('<|return|>' if last else '<|end|>') -}}{%- endif -%}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"
)
_NINE = (
    "{{- '[SYSTEM]' ~ messages[0].content ~ (tools | tojson) ~ '[/SYSTEM]' -}}"
    "{%- if messages[1] is defined and messages[1].role == 'assistant' and not messages[1].tool_calls -%}"
    "{{- raise_exception('the user speaks first') -}}{%- endif -%}{%- for message in messages[1:] -%}"
    "{%- if message.role == 'user' -%}{{- '[INST]' ~ message.content ~ '[/INST]' -}}"
    "{%- elif message.role == 'tool' -%}"
    "{{- '[RESULT]' ~ message.tool_call_id ~ '[CONTENT]' ~ message.content ~ '[/RESULT]' -}}"
    "{%- else -%}{%- for call in message.tool_calls or [] -%}"
    "{%- if call.id | length != 9 -%}{{- raise_exception('ids have nine characters') -}}{%- endif -%}"
    "{{- '[CALLS]' ~ call.function.name ~ '[ID]' ~ call.id ~ '[ARGS]' ~ call.function.arguments | tojson -}}"
    "{%- else -%}{{- message.content -}}{%- endfor -%}{{- '</s>' -}}{%- endif -%}{%- endfor -%}"
)
_NUMBERED = _chat(
    "{{- '<section>' if loop.first else '' -}}"
    "{{- '<call>functions.' ~ call.function.name ~ ':' ~ loop.index0 ~ '<args>' -}}"
    "{{- call.function.arguments | tojson ~ '</call>' ~ ('</section>' if loop.last else '') -}}"
).replace("'<result>' ~", "'## ' ~ message.tool_call_id ~ '\\n<result>' ~")
_OBJECT = "'{\\\"name\\\": \\\"' ~ call.function.name ~ '\\\", \\\"%s\\\": ' ~ call.function.arguments | tojson ~ '}'"
_BARE = (
    _chat("{{- " + _OBJECT % "parameters" + " -}}")
    .replace("{{- message.content or '' -}}", "{{- message.content if not message.tool_calls else '' -}}")
    .replace(
        "{%- for call in",
        "{%- if message.tool_calls | length > 1 -%}{{- raise_exception('one') -}}{%- endif -%}{%- for call in",
    )
)

STYLES: dict[str, tuple[str, tuple[str, ...]]] = {
    "parameters": (_chat(_XML_CALL), ()),
    "parameters, thinking": (
        _chat(_XML_CALL, prompt=_PROMPT.replace("\\n'", "\\n<think>\\n'")).replace(
            "{{- message.content or '' -}}",
            "{%- if message.role == 'assistant' and loop.index0 > messages | length - 3 -%}"
            "{{- '<think>\\n' ~ (message.reasoning_content or '') ~ '\\n</think>\\n\\n' -}}{%- endif -%}"
            "{{- message.content or '' -}}",
        ),
        (),
    ),
    "keys and values, no closing": (
        _KEYED,
        ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<arg_key>", "</arg_key>", "<arg_value>",
         "</arg_value>"),
    ),
    "channels": (_CHANNELS, ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|call|>", "<|return|>")),
    "ids of nine characters": (
        _NINE,
        ("[SYSTEM]", "[/SYSTEM]", "[INST]", "[/INST]", "[RESULT]", "[CONTENT]", "[/RESULT]", "[CALLS]", "[ID]",
         "[ARGS]", "</s>"),
    ),
    "numbered calls": (_NUMBERED, ("<section>", "</section>", "<call>", "<args>", "</call>")),
    "nothing but an object": (_BARE, ()),
    "tags of plain text": (_chat("{{- '\\n<make>\\n' ~ " + _OBJECT % "arguments" + " ~ '\\n</make>' -}}"), ()),
}  # fmt: skip
"""Chat templates by style, and the control tokens that they need beside those of the embedded tokenizer."""


def tokenizer(style: str) -> Any:
    """The embedded tokenizer with the chat template of that style."""
    template, tokens = STYLES[style]
    made = transformers.PreTrainedTokenizerFast.from_pretrained(EMBEDDED_TOKENIZER)
    made.add_special_tokens({"additional_special_tokens": list(tokens)})
    made.chat_template = template
    return made


@functools.cache
def codec(style: str) -> ChatCodec:
    """The codec of that style's template."""
    return ChatCodec(tokenizer(style), name=style, tool_parser="learned")
