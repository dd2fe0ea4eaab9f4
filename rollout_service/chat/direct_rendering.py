"""DirectRendering: a chat template without the copies that transformers makes of what it renders.

transformers rebuilds all messages and tools from plain types for each rendering, because its callers may pass images
and arrays. This takes longer than the template itself. What a codec renders are plain JSON values already.

Invariant: the template is compiled as transformers does, with its sandbox. `proved` gives a rendering only if it agrees
with the tokenizer's own on every conversation that it is shown.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rollout_service.chat.message_form import ChatMessage
from rollout_service.chat.tool_texts import ToolTexts

_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which transformers finds a message's reasoning."""

_OF_DICTS = frozenset(dir(dict))
"""Attributes that every dict has. Any other name that a template asks a dict for is a key."""

Rendering = Callable[[Sequence[ChatMessage], Sequence[dict[str, Any]], bool], str]
"""Gives the text of messages and tools, with the generation prompt or without."""


class DirectRendering:
    """Renders conversations of plain JSON values."""

    def __init__(self, tokenizer: Any, source: str | None, arguments: Mapping[str, Any]) -> None:
        """
        Args:
            source: the chat template; None: the tokenizer's own.
            arguments: what the template is given beside the messages and the tools.

        Raises:
            Exception: this version of transformers compiles templates in another way, or cannot compile this one.
        """
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self._tool_texts: ToolTexts | None = None
        compiled = functools.cache(functools.partial(self._made_faster, _compile_jinja_template))  # mostly one template
        self._compiled = {
            has_tools: compiled(tokenizer.get_chat_template(source, [{}] if has_tools else None))
            for has_tools in (True, False)
        }
        self._arguments = {"documents": None, **tokenizer.special_tokens_map, **arguments}

    def __call__(
        self, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]], generation_prompt: bool
    ) -> str:
        """The conversation as text."""
        own = self._tool_texts.own(tools) if self._tool_texts is not None and tools else tools
        return str(
            self._compiled[bool(tools)].render(
                messages=[_as_transformers_gives(message) for message in messages],
                tools=own or None,
                add_generation_prompt=generation_prompt,
                **self._arguments,
            )
        )

    def _made_faster(self, compile_template: Callable[[str], Any], source: str) -> Any:
        """The compiled template. Its sandbox remembers which attributes of a type are safe, and looks for a message's
        keys first among its keys: both take longer than most of what a template does. The tools' JSON is kept."""
        environment = compile_template(source).environment.overlay()
        find_out = environment.is_safe_attribute
        known: dict[tuple[type, str], bool] = {}

        def is_safe_attribute(holder: Any, name: str, value: Any) -> bool:
            key = type(holder), name
            if key not in known:
                known[key] = find_out(holder, name, value)
            return bool(known[key])

        look_up = environment.getattr

        def attribute(holder: Any, name: str) -> Any:
            if type(holder) is not dict or name in _OF_DICTS:
                return look_up(holder, name)
            return holder[name] if name in holder else environment.undefined(obj=holder, name=name)

        environment.is_safe_attribute, environment.getattr = is_safe_attribute, attribute
        self._tool_texts = self._tool_texts or ToolTexts(environment.filters["tojson"])
        environment.filters = {**environment.filters, "tojson": self._tool_texts.to_json}
        return environment.from_string(source)

    @classmethod
    def proved(
        cls,
        tokenizer: Any,
        source: str | None,
        arguments: Mapping[str, Any],
        own: Rendering,
        conversations: Sequence[Sequence[ChatMessage]],
        tools: Sequence[dict[str, Any]],
    ) -> DirectRendering | None:
        """The rendering, if it agrees with the tokenizer's `own` on the conversations and on all that they begin with.
        None: it does not."""
        try:
            direct = cls(tokenizer, source, arguments)
        except Exception:  # whatever it is, the tokenizer's own rendering does without it
            return None
        beginnings = [talk[:end] for talk in conversations for end in range(1, len(talk) + 1)]
        for messages, given, prompted in itertools.product(beginnings, (tools, ()), (True, False)):
            if _text(direct, messages, given, prompted) != _text(own, messages, given, prompted):
                return None
        return direct


def _text(
    rendering: Rendering, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]], prompted: bool
) -> str | None:
    """The text, or None if the template refuses the conversation."""
    try:
        return rendering(messages, tools, prompted)
    except Exception:  # templates raise what they like
        return None


def _as_transformers_gives(message: ChatMessage) -> ChatMessage:
    """The message as the template gets it from transformers: without keys that are null, and with its reasoning under
    each name that templates use."""
    given = {key: value for key, value in message.items() if value is not None}
    said = next((given[key] for key in _REASONING if key in given), None)
    return given if said is None else {"thinking": said, **given, "reasoning_content": said}
