"""ChatTemplate: a tokenizer's own chat template, in the message form that it takes.

Invariant: every rendering of a codec goes through here, with the same template arguments.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from rollout_service.chat.direct_rendering import DirectRendering
from rollout_service.chat.message_form import ChatMessage, MessageForm
from rollout_service.chat.template_date import CLOCK, asks_for_date, dated, today
from rollout_service.config.calendar_date import check_date
from rollout_service.errors import CodecError

ToolSchema = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """Renders conversations."""

    tokenizer: Any
    name: str
    """The tokenizer's name, for errors."""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What the template is given beside the messages and the tools, such as `enable_thinking`."""
    form: MessageForm = dataclasses.field(default_factory=MessageForm)
    date: str = dataclasses.field(default_factory=today)
    """What the template writes where it asks for today's date, as 2026-01-31."""
    direct: DirectRendering | None = None
    """Renders the same faster. None: nothing was found that does."""

    def __post_init__(self) -> None:
        try:
            check_date(self.date)
        except ValueError as error:
            raise CodecError(f"The date of the chat template: {error}.", "Set policy.date to one.") from error
        for name in self.arguments:
            if name in self._own:
                raise CodecError(
                    f"policy.template_arguments: {name} is set by the service itself.", f"Leave {name} out."
                )

    @property
    def _own(self) -> set[str]:
        """Names that belong to the rendering itself. `chat_template` is one of them: the fingerprint in trajectories is
        that of the tokenizer's template."""
        return {"messages", *inspect.signature(self.tokenizer.apply_chat_template).parameters}

    def with_form(self, form: MessageForm) -> ChatTemplate:
        """The same template, given messages in another form."""
        return dataclasses.replace(self, form=form)

    def made_faster(self, conversations: Sequence[Sequence[ChatMessage]], tools: Sequence[ToolSchema]) -> ChatTemplate:
        """The same template, rendered directly if that gives the same text for these conversations."""
        formed = [self.form.of(conversation) for conversation in conversations]
        direct = DirectRendering.proved(self.tokenizer, self._dated, self.arguments, self._official, formed, tools)
        return dataclasses.replace(self, direct=direct)

    def text(
        self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema] = (), *, generation_prompt: bool = False
    ) -> str:
        """The conversation as text.

        Raises:
            CodecError: the template cannot render it.
        """
        formed = self.form.of(messages)
        if self.direct is not None:
            with contextlib.suppress(Exception):  # the tokenizer's own rendering raises it again
                return self.direct(formed, tools, generation_prompt)
        try:
            return self._official(formed, tools, generation_prompt)
        except Exception as error:
            raise self._refusal(error, messages, tools) from error

    def _refusal(self, error: Exception, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema]) -> CodecError:
        """What a template that raised is told to its user."""
        import jinja2

        if isinstance(error, jinja2.TemplateSyntaxError):
            return CodecError(
                f"The chat template of {self.name!r} is no valid template: line {error.lineno}: {error}.",
                "Save the tokenizer with a template that Jinja can read.",
            )
        roles = [message["role"] for message in messages]
        if tools and self.official._text_or_none(messages, (), False) is not None:
            return CodecError(
                f"The chat template of {self.name!r} renders a conversation of {roles}, but not with tools. It says: "
                f"{error}",
                "Use a model that was trained to call tools, with the chat template that came with it.",
            )
        return CodecError(
            f"The chat template of {self.name!r} cannot render a conversation of {roles}. It says: {error}",
            "Use a template that renders user, assistant and tool messages, with tools.",
        )

    @property
    def official(self) -> ChatTemplate:
        """The same template, rendered by the tokenizer itself."""
        return dataclasses.replace(self, direct=None)

    def _official(self, formed: Sequence[ChatMessage], tools: Sequence[ToolSchema], generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                formed,
                tools=list(tools) or None,
                chat_template=self._dated,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self.arguments,
            )
        )

    @functools.cached_property
    def _dated(self) -> str | None:
        """The template with its date; None: the tokenizer's own, which asks for none."""
        source = self.tokenizer.chat_template
        return dated(source, self.date) if isinstance(source, str) and asks_for_date(source) else None

    def date_written(
        self, conversations: Sequence[Sequence[ChatMessage]], tools: Sequence[ToolSchema], asked: str | None
    ) -> str:
        """The date that stands in the conversations; empty: none does.

        Args:
            asked: the date that the settings ask for, if they do.

        Raises:
            CodecError: they ask for one, and the template writes none.
        """
        other = dataclasses.replace(self, date="1999-12-31" if self.date != "1999-12-31" else "1998-11-30")
        if self._dated is not None and any(
            self._text_or_none(conversation, tools, True) != other._text_or_none(conversation, tools, True)
            for conversation in conversations
        ):
            return self.date
        if asked is not None:
            raise CodecError(
                f"policy.date is {asked}, but the chat template of {self.name!r} writes no date.", "Leave it out."
            )
        return ""

    def check_repeatable(self, conversations: Sequence[Sequence[ChatMessage]], tools: Sequence[ToolSchema]) -> None:
        """Check that the template renders each of the conversations twice alike.

        Raises:
            CodecError: it does not.
        """
        for conversation in conversations:
            first, again = (self._text_or_none(conversation, tools, True) for _ in range(2))
            if first is not None and again is not None and first != again:
                at = next((i for i, (a, b) in enumerate(zip(first, again, strict=False)) if a != b), 0)
                shown = slice(max(0, at - 40), at + 20)
                raise CodecError(
                    f"The chat template of {self.name!r} renders the same conversation otherwise each time: "
                    f"{first[shown]!r}, then {again[shown]!r}.",
                    "Take out of it what draws at random or counts its renderings.",
                )

    def check_arguments(self, conversations: Sequence[Sequence[ChatMessage]], tools: Sequence[ToolSchema]) -> None:
        """Check that the template reads each of its arguments: it ignores others without a word.

        Args:
            conversations: an argument is read if it changes how one of these is rendered.

        Raises:
            CodecError: names the argument that changes nothing.
        """
        for name in self.arguments:
            if not self._reads(name, conversations, tools):
                variables = _variables(str(self.tokenizer.chat_template)) - self._own
                others = (other for other in sorted(variables) if other != name)
                read = [other for other in others if self._reads(other, conversations, tools)]
                raise CodecError(
                    f"policy.template_arguments: the chat template of {self.name!r} does not read {name!r}; it would "
                    "be ignored.",
                    f"Leave it out. The template reads {', '.join(read) or 'no arguments'}.",
                )

    def _reads(self, name: str, conversations: Sequence[Sequence[ChatMessage]], tools: Sequence[ToolSchema]) -> bool:
        """Whether the argument changes any of the conversations, with the value it has or with another one."""
        without = {key: value for key, value in self.arguments.items() if key != name}
        values = [True, False, "probe-9f41c7", *([self.arguments[name]] if name in self.arguments else [])]
        templates = [dataclasses.replace(self, arguments={**without, name: value}) for value in values]
        plain = dataclasses.replace(self, arguments=without)
        for conversation in conversations:
            for generation_prompt in (True, False):
                expected = plain._text_or_none(conversation, tools, generation_prompt)
                if any(other._text_or_none(conversation, tools, generation_prompt) != expected for other in templates):
                    return True
        return False

    def _text_or_none(
        self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema], generation_prompt: bool
    ) -> str | None:
        try:
            return self.text(messages, tools, generation_prompt=generation_prompt)
        except CodecError:
            return None


def _variables(template: str) -> set[str]:
    """Names that the template may read, without the functions and special tokens that every template has."""
    import jinja2
    import jinja2.meta

    try:
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except jinja2.TemplateError:
        return set()
    functions = {"raise_exception", CLOCK, "namespace", "bos_token", "eos_token", "unk_token", "pad_token"}
    return set(jinja2.meta.find_undeclared_variables(parsed)).difference(functions)
