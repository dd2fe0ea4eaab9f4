"""Learns a chat template: the form of its messages, how its turns close, and what reads them.

Invariant: the forms are tried in a fixed order, and the first is taken in which the template writes turns that can be
read back. Which parser reads them is decided by reading, too. A proof of all of it follows, in
`rollout_service.chat.proof`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rollout_service.chat.call_formats import FORMATS
from rollout_service.chat.closing import Closing, learn_closing
from rollout_service.chat.control_tokens import CUT, ControlTokens
from rollout_service.chat.grammar import Call, Grammar, NameThenJson, NotLearned, learn_grammar
from rollout_service.chat.grammar_reader import NUMBERED, PROBE_ID, GrammarReader
from rollout_service.chat.harmony_reader import HarmonyReader
from rollout_service.chat.message_form import ChatMessage, MessageForm
from rollout_service.chat.parsed_turn import ParsedTurn, tool_call
from rollout_service.chat.renderers_reader import RenderersReader
from rollout_service.chat.template import ChatTemplate, ToolSchema
from rollout_service.errors import CodecError

LEARNED = "learned"
PARSERS = (*FORMATS, HarmonyReader.name, LEARNED)
"""Everything that can read tool calls."""

_AUTO = ("qwen3", "deepseek-v3", HarmonyReader.name, LEARNED)
"""What is tried, in this order. The other parsers guess the types of arguments."""

ARGUMENTS: dict[str, Any] = {
    "order_id": "#W0123",
    "zip": "00501",
    "count": 2,
    "price": 3.5,
    "confirmed": True,
    "items": ["1", "é ü 漢字 🙂", "null"],
    "address": {"line": 'He said "hi"\\n', "note": "a\nb", "empty": ""},
    "nothing": None,
    "code": "5",
    "word": "true",
    "lines": " a\n\n<b>é</b> ",
}
"""One argument of every type, and strings that look like other types."""

_SCHEMAS: dict[str, dict[str, Any]] = {
    "count": {"type": "integer"},
    "price": {"type": "number"},
    "confirmed": {"type": "boolean"},
    "items": {"type": "array", "items": {"type": "string"}},
    "address": {"type": "object", "properties": {"line": {"type": "string"}}},
    "nothing": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
}
PROBE_TOOLS: list[ToolSchema] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "A probe.",
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"description": "A value.", **_SCHEMAS.get(key, {"type": "string"})} for key in ARGUMENTS
                },
                "required": ["order_id"],
            },
        },
    }
    for name in ("look_up", "change")
]

_LAST_WORDS = "</policy>"
SYSTEM: ChatMessage = {
    "role": "system",
    "content": f"<instructions>\nHelp.\n</instructions>\n<policy>\nBe kind.\n{_LAST_WORDS}",
}
GREETING: ChatMessage = {"role": "assistant", "content": "Hi! How can I help you today?"}
OPENING: list[ChatMessage] = [SYSTEM, {"role": "user", "content": "My order, please."}]
"""A conversation in which the policy's first turn comes next."""

PROBE_CONVERSATIONS: list[list[ChatMessage]] = [
    OPENING,
    [
        *OPENING,
        {"role": "assistant", "content": "Which one?", "reasoning_content": "A thought."},
        {"role": "user", "content": "The last one."},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Another.",
            "tool_calls": [tool_call("look_up", {}, "call_0")],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": "{}"},
        {"role": "assistant", "content": "Done.", "reasoning_content": "The last."},
    ],
]
"""Conversations in which a template can show what its arguments do."""


class Reader(Protocol):
    """Reads sampled turns."""

    @property
    def name(self) -> str:
        """What `policy.tool_parser` calls it."""

    def read(self, token_ids: Sequence[int], tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
        """Parse a turn's tokens, without the one that ended it."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """What is known of a chat template."""

    template: ChatTemplate
    closing: Closing
    grammar: Grammar | None
    """None: the template's grammar could not be learned, and a parser reads its turns all the same."""
    reader: Reader

    @property
    def thinks(self) -> bool:
        """Whether the template has a place for thoughts."""
        return self.grammar is not None and self.grammar.thinks


@dataclasses.dataclass(frozen=True)
class _Tokenizer:
    """What learning needs of a tokenizer."""

    backend: Any
    control: ControlTokens
    decode: Callable[[Sequence[int]], str]


def learn(
    template: ChatTemplate,
    backend: Any,
    control: ControlTokens,
    decode: Callable[[Sequence[int]], str],
    tool_parser: str,
) -> Learned:
    """Find the form in which the template takes messages, and what reads its turns.

    Raises:
        CodecError: `tool_parser` is unknown, the template does not read one of its arguments, or there is no form in
            which turns can be read back; says what failed in the usual form, or in the first that the template renders.
    """
    if tool_parser != "auto" and tool_parser not in PARSERS:
        raise CodecError(
            f"policy.tool_parser: {tool_parser!r} is not a parser.", f"Choose auto or one of {', '.join(PARSERS)}."
        )
    template.check_repeatable(PROBE_CONVERSATIONS, PROBE_TOOLS)
    wanted = _AUTO if tool_parser == "auto" else (tool_parser,)
    tokenizer = _Tokenizer(backend, control, decode)
    refusals: list[CodecError] = []
    for form in MessageForm.all():
        try:
            learned = _learn(template.with_form(form), tokenizer, wanted)
        except CodecError as error:
            refusals.append(error)
        except NotLearned as error:
            problem = f"The chat template of {template.name!r} cannot be followed: {error}."
            refusals.append(CodecError(problem, "Use a template whose generation prompt is the start of its turns."))
        else:
            learned.template.check_arguments(PROBE_CONVERSATIONS, PROBE_TOOLS)
            return learned
    rendered = [error for error in refusals if "cannot render" not in error.problem]  # they say more
    raise (rendered or refusals)[0]


def _learn(template: ChatTemplate, tokenizer: _Tokenizer, wanted: Sequence[str]) -> Learned:
    control = tokenizer.control
    closing = learn_closing(template, control, OPENING, PROBE_TOOLS)
    template = template.with_form(dataclasses.replace(template.form, greeting=_greeting(template, closing)))
    prompt = template.text(OPENING, PROBE_TOOLS, generation_prompt=True)

    def written(content: str, calls: Sequence[Call], thought: str | None) -> str:
        return _written(template, closing, control, prompt, _turn(content, calls, thought))

    grammar, reason = None, ""
    try:
        grammar = learn_grammar(written)
    except (NotLearned, ValueError) as error:
        reason = f"; {error}" if isinstance(error, NotLearned) else ""
    if grammar is not None and isinstance(grammar.call, NameThenJson) and NUMBERED.match(grammar.call.after_name):
        template = template.with_form(dataclasses.replace(template.form, ids="functions"))
    opened = control.mark(prompt)
    last = ""
    for name in wanted:
        reader = _reader(name, template, tokenizer, grammar, opened)
        if reader is None:
            continue
        turn = _read_back(reader, template, closing, tokenizer, prompt, grammar)
        if turn is None:
            return Learned(template, closing, grammar, reader)
        last = turn
    raise CodecError(
        f"No tool-call parser ({', '.join(wanted)}) reads back what the chat template of {template.name!r} writes"
        f"{reason}; with the last one, {last}.",
        "Use a template that writes a call's name and every argument in a form that can be told from text: JSON, or a "
        "tag for each argument with lists and mappings as JSON.",
    )


def _reader(
    name: str, template: ChatTemplate, tokenizer: _Tokenizer, grammar: Grammar | None, opened: str
) -> Reader | None:
    control = tokenizer.control
    if name == LEARNED:
        return None if grammar is None else GrammarReader(grammar, control, opened, template.form.ids)
    if name == HarmonyReader.name:
        return HarmonyReader(control) if HarmonyReader.fits(control) else None
    thinking = control.unmark(opened).rstrip().endswith("<think>")
    return RenderersReader(name, tokenizer.backend, control, tokenizer.decode, thinking=thinking)


def _read_back(
    reader: Reader,
    template: ChatTemplate,
    closing: Closing,
    tokenizer: _Tokenizer,
    prompt: str,
    grammar: Grammar | None,
) -> str | None:
    """What the reader read of a call, if that differs from what the template wrote. None: it is the same."""
    thoughts = ["A thought.", None] if grammar is not None and grammar.thinks else [None]
    for thought in thoughts:
        turn = _turn("", [("look_up", ARGUMENTS)], thought)
        try:
            marked = _written(template, closing, tokenizer.control, prompt, turn)
        except NotLearned:
            if thought is None and len(thoughts) == 1:
                raise
            continue
        text = tokenizer.control.unmark(marked)
        ids = tokenizer.backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        read = reader.read(ids, PROBE_TOOLS)
        if [(c.name, c.arguments, c.status) for c in read.calls] != [("look_up", ARGUMENTS, "ok")]:
            return _difference(read)
    return None


def _difference(read: ParsedTurn) -> str:
    """Where a turn that was read differs from the call that was written."""
    if [(call.name, call.status) for call in read.calls] != [("look_up", "ok")]:
        return f"it reads {read.calls or read.raw!r}"[:300]
    made = read.calls[0].arguments
    key = next(key for key in [*ARGUMENTS, *made] if repr(made.get(key)) != repr(ARGUMENTS.get(key)))
    return f"the argument {ARGUMENTS.get(key)!r} is read as {made.get(key)!r}"


def _written(template: ChatTemplate, closing: Closing, control: ControlTokens, prompt: str, turn: ChatMessage) -> str:
    """The marked text of a turn after the generation prompt, without the token that closes it.

    Raises:
        NotLearned: the template does not write the turn so.
    """
    try:
        text = template.text([*OPENING, turn], PROBE_TOOLS)
    except CodecError as error:
        raise NotLearned(str(error)) from error
    if not text.startswith(prompt):
        raise NotLearned(
            f"it writes a turn differently from how its generation prompt opens it: "
            f"{text[len(prompt) - 30 : len(prompt) + 50]!r} does not start with {prompt[-40:]!r}"
        )
    body = text[len(prompt) :].replace(CUT, "")
    ending = closing.of(bool(turn.get("tool_calls")))
    if ending.own:
        body, found, _ = body.rpartition(ending.sampled)
        if not found:
            raise NotLearned(f"it does not close a turn with {ending.sampled!r}")
    return control.mark(body)


def _turn(content: str, calls: Sequence[Call], thought: str | None) -> ChatMessage:
    turn: ChatMessage = {"role": "assistant", "content": content}
    if thought is not None:
        turn["reasoning_content"] = thought
    if calls:
        turn["tool_calls"] = [tool_call(name, arguments, PROBE_ID) for name, arguments in calls]
    return turn


def _greeting(template: ChatTemplate, closing: Closing) -> Any:
    """Whether the template has a place for a greeting with which the assistant opens the conversation. It has none if
    it refuses the greeting, leaves it out, or writes it below the header of a user's message."""
    words, said = "GREETINGQ9", "SAIDQ9"
    greeting: ChatMessage = {"role": "assistant", "content": words}
    user: ChatMessage = {"role": "user", "content": said}
    try:
        first = template.text([SYSTEM, greeting, user], PROBE_TOOLS)
        later = template.text([*OPENING, greeting, user], PROBE_TOOLS)
    except CodecError:
        return "left_out"
    end = closing.end(later, later.find(words), has_calls=False) if words in later else None
    if end is None or first.count(words) != 1 or first.count(said) != 1:
        return "left_out"
    users_header = later[end : later.rindex(said)].strip()
    before = first[first.rfind(_LAST_WORDS) : first.index(words)]
    return "left_out" if users_header in before else "kept"
