"""Closing: how a chat template ends a turn of the policy.

Invariant: learned from the template's own renderings. A turn ends in one of two ways: with a control token of its own
(`<|im_end|>`), which may differ between the newest turn and earlier ones (gpt-oss), and between text and calls; or with
nothing, so that the token which opens the next message ends it (GLM). The policy samples that token either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rollout_service.chat.control_tokens import MARKS, ControlTokens
from rollout_service.chat.message_form import ChatMessage
from rollout_service.chat.template import ChatTemplate
from rollout_service.errors import CodecError

TEXT, NAME, KEY, VALUE = "TEXTQ9", "NAMEQ9", "KEYQ9", "VALQ9"
"""What probes say. These words occur in no template."""

_ANSWER = "ANSWERQ9"


@dataclass(frozen=True, slots=True)
class Ending:
    """How one kind of turn ends."""

    sampled: str
    """Text of the control token that the policy samples last."""
    in_history: str
    """Text of the token that stands in its place once messages follow."""
    own: bool
    """Whether the token belongs to the turn. Otherwise it opens the next message."""


@dataclass(frozen=True, slots=True)
class Closing:
    """How turns end: those that only say something, and those with calls."""

    text: Ending
    calls: Ending

    def of(self, has_calls: bool) -> Ending:
        """The ending of a turn with calls, or without."""
        return self.calls if has_calls else self.text

    def end(self, text: str, start: int, has_calls: bool) -> int | None:
        """Where the turn around `start` of a rendered conversation ends; None: it is not closed.

        Args:
            text: shielded, so that only the template's own control tokens read as such.
        """
        ending = self.of(has_calls)
        if ending.own:
            found = [(at, at + len(token)) for token in {ending.sampled, ending.in_history}
                     if (at := text.find(token, start)) >= 0]  # fmt: skip
            return min(found)[1] if found else None
        openings = {self.text.sampled, self.calls.sampled, self.text.in_history, self.calls.in_history}
        starts = [at for token in openings if (at := text.find(token, start)) >= 0]
        return min(starts, default=None)


def learn_closing(
    template: ChatTemplate, control: ControlTokens, opening: list[ChatMessage], tools: list[dict[str, Any]]
) -> Closing:
    """Learn how turns end.

    Raises:
        CodecError: a turn ends without a control token, or is not written at all.
    """

    def after(word: str, turn: ChatMessage, *replies: ChatMessage) -> str:
        """What follows the probe's last word, marked; up to the answer's text."""
        marked = control.mark(template.text([*opening, turn, *replies], tools))
        at = marked.rfind(word)
        if at < 0:
            what = "its text" if word == TEXT else "its calls"
            raise CodecError(
                f"The chat template of {template.name!r} writes a turn of the assistant without {what}: it ends with "
                f"{control.unmark(marked[-80:])!r}, which holds no added token of a turn.",
                "Use a template that writes what the assistant says and the tools that it calls.",
            )
        return marked[at + len(word) :].partition(_ANSWER)[0]

    text_turn: ChatMessage = {"role": "assistant", "content": TEXT}
    function = {"name": NAME, "arguments": {KEY: VALUE}}
    call_turn: ChatMessage = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
    }
    user: ChatMessage = {"role": "user", "content": _ANSWER}
    result: ChatMessage = {"role": "tool", "tool_call_id": "call_0", "content": _ANSWER}
    text_end, text_then = after(TEXT, text_turn), after(TEXT, text_turn, user)
    call_end, call_then = after(VALUE, call_turn), after(VALUE, call_turn, result)
    closes = MARKS.search(text_end)
    if closes is None:
        return _without_closing(template, control, (text_end, text_then), (call_end, call_then))
    text_token = closes[0]
    text_history = _first(text_then, template, control)
    call_token = text_token if text_token in call_end else _last(call_end, template, control)
    call_history = next((token for token in (call_token, text_token, text_history) if token in call_then), None)
    if call_history is None:
        raise _not_closed(template, control, call_then)
    return Closing(
        Ending(str(control.unmark(text_token)), str(control.unmark(text_history)), own=True),
        Ending(str(control.unmark(call_token)), str(control.unmark(call_history)), own=True),
    )


def _without_closing(
    template: ChatTemplate, control: ControlTokens, text: tuple[str, str], call: tuple[str, str]
) -> Closing:
    """The closing where nothing follows a text, given as its end and what stands there once messages follow."""
    if text[0].strip():
        raise CodecError(
            f"The chat template of {template.name!r} ends an assistant turn with {text[0][:40]!r}, which holds no "
            "added token.",
            "Use a template that closes each turn with a special token. If the model samples this text as one token, "
            "add it to the tokenizer: tokenizer.add_special_tokens({'additional_special_tokens': [...]}).",
        )
    endings = []
    for end, then in (text, call):
        rest = then.removeprefix(end) if then.startswith(end) else then.removeprefix(end.rstrip())
        token = str(control.unmark(_first(rest, template, control)))
        endings.append(Ending(token, token, own=False))
    return Closing(*endings)


def _first(marked: str, template: ChatTemplate, control: ControlTokens) -> str:
    found = MARKS.search(marked)
    if found is None:
        raise _not_closed(template, control, marked)
    return found[0]


def _last(marked: str, template: ChatTemplate, control: ControlTokens) -> str:
    found = MARKS.findall(marked)
    if not found:
        raise _not_closed(template, control, marked)
    return str(found[-1])


def _not_closed(template: ChatTemplate, control: ControlTokens, marked: str) -> CodecError:
    return CodecError(
        f"The chat template of {template.name!r} closes a turn with a control token, but not this one: "
        f"{control.unmark(marked[:200])!r}.",
        "Use a template that writes every turn and closes each with a control token.",
    )
