"""GrammarReader: reads a sampled turn by the grammar that was learned from the chat template.

Invariant: strict, and linear in the turn's length. What is not exactly a call is malformed and keeps its text; white
space between the parts of a call may differ from the template's, nothing else. Nothing inside of a thought is a call.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import rollout_service.chat.call_formats as call_formats
from rollout_service.chat.call_formats import NotACallError
from rollout_service.chat.control_tokens import MARKS, ControlTokens, marks_in, plain
from rollout_service.chat.grammar import Grammar, JsonObject, NameThenJson, NameThenParameters, Openings
from rollout_service.chat.parsed_turn import OK, ParsedCall, ParsedTurn, malformed, problem
from rollout_service.chat.schema_types import SchemaTypes
from rollout_service.chat.template import ToolSchema

PROBE_ID = "abcdefghi"
"""The id of calls in probes."""

NUMBERED = re.compile(r":\d+")
"""What follows a call's name where the template numbers its calls (`functions.NAME:0`)."""

_NAME = re.compile("[^\\s\"'<>{}\\[\\],\ud800-\udfff]+?(?=$|[^\\w.\\-/])")
_JSON_BEGIN = r"\{\s*\"(?:%s)\"\s*:"


@dataclass(frozen=True, slots=True)
class _Unit:
    """A call's name and arguments, without what stands around them."""

    name: str
    arguments: Any
    end: int
    id: str | None = None
    is_empty: bool = False


class GrammarReader:
    """Reads turns. It keeps no state."""

    name = "learned"

    def __init__(self, grammar: Grammar, control: ControlTokens, generation_prompt: str, ids: str) -> None:
        """
        Args:
            generation_prompt: marked.
            ids: the form of call ids, see `MessageForm`.
        """
        self.grammar = grammar
        self._control = control
        self._ids = ids
        self._thought_open = flexible(grammar.thought_open)
        self._thought_close = flexible(grammar.thought_close)
        self._think_tags = _think_tags(grammar, control, generation_prompt)
        self._after_thought = self._opening(grammar.after_thought)
        self._bare = self._opening(grammar.bare or grammar.after_thought)
        self._text_close = grammar.text_close.strip()
        self._between = None if grammar.between is None else self._joint(grammar.between)
        self._end = self._joint(grammar.end)
        self._units: Callable[[str, int, SchemaTypes], _Unit] = {
            JsonObject: self._object_unit,
            NameThenJson: self._json_unit,
            NameThenParameters: self._parameters_unit,
        }[type(grammar.call)]
        self._prepare_call(grammar.call)

    def _prepare_call(self, call: Any) -> None:
        if isinstance(call, NameThenJson):
            self._after_name = self._joint(call.after_name)
        elif isinstance(call, NameThenParameters):
            self._after_name = self._joint(call.after_name)
            self._key_open, self._next_key_open = flexible(call.key_open), flexible(call.next_key_open)
            marks = sorted(call.key_to_value, key=len, reverse=True)
            self._key_marks = [(mark == call.string_mark, exact(mark, last=True)) for mark in marks]
            self._value_close = exact(call.value_close, last=False)
            self._between_empty = None if call.between_empty is None else flexible(call.between_empty)
            self._end_empty = flexible(call.end_empty)

    def _joint(self, text: str) -> re.Pattern[str]:
        """The pattern of a text, in which a call's id may be any."""
        if PROBE_ID in text:
            pattern = "[A-Za-z0-9]{9}" if self._ids == "nine" else '[^\\s"<>\ud800-\udfff]+'
            return re.compile(f"(?P<id>{pattern})".join(_source(part) for part in text.split(PROBE_ID, 1)))
        if found := NUMBERED.match(text):
            return re.compile(r":(?P<number>\d+)" + _source(text[found.end() :]))
        return flexible(text)

    # Turns -----------------------------------------------------------------------------------------------------------

    def read(self, token_ids: Sequence[int], tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
        """Parse a turn's tokens, without the one that ended it.

        Args:
            tools: give the types of arguments that are written without quotes.
        """
        unmark = self._control.unmark
        reasoning, text = self._split_thought(self._control.marked(token_ids))
        opening = self._bare if reasoning is None else self._after_thought
        raw = unmark(text.strip())
        start = opening.first_call(text)
        if start is None:
            return self._text_turn(reasoning, text, opening, raw)
        content = unmark(opening.content(text[:start]).strip())
        said = None if reasoning is None else unmark(reasoning)
        try:
            calls = self._calls(text, start, opening, SchemaTypes(tools))
        except (RecursionError, ValueError):  # JSON with thousands of nested brackets, or of digits in a number
            calls = [malformed(plain(raw), "unreadable")]
            content = ""
        return ParsedTurn(content, said, calls, raw)

    def _text_turn(self, reasoning: str | None, text: str, opening: _Opening, raw: str) -> ParsedTurn:
        unmark = self._control.unmark
        said = None if reasoning is None else unmark(reasoning)
        if not opening.opens_text(text):
            return ParsedTurn("", said, [malformed(plain(raw), "malformed_structure")], raw)
        content = opening.content(text).strip()
        if self._text_close:
            content = content.removesuffix(self._text_close).strip()
        return ParsedTurn(unmark(content), said, [], raw)

    def _split_thought(self, text: str) -> tuple[str | None, str]:
        """The thought, marked, and the rest. A thought that does not end is all of the turn."""
        grammar = self.grammar
        opening, closing = (grammar.thought_open, grammar.thought_close) if grammar.thinks else self._think_tags
        if not closing or (not grammar.thinks and not MARKS.fullmatch(closing)):
            return None, text
        opened = flexible(opening).match(text, len(text) - len(text.lstrip()))
        if opening and opened is None:
            return None, text
        start = opened.end() if opened else 0
        end = flexible(closing).search(text, start)
        if end is None:
            return text[start:].strip("\n"), ""
        return text[start : end.start()].strip("\n"), text[end.end() :]

    def _opening(self, openings: Openings | None) -> _Opening:
        return _Opening(openings or Openings("", ""), self.grammar.call)

    # Calls -----------------------------------------------------------------------------------------------------------

    def _calls(self, text: str, start: int, opening: _Opening, types: SchemaTypes) -> list[ParsedCall]:
        """The calls of a turn whose first one opens at `start`."""
        found: list[tuple[ParsedCall, int, int]] = []
        at = opening.begin_end(text, start)
        while True:
            call, end, unit = self._call(text, start, at, types)
            following = self._next(text, end, opening, unit)
            if call.status != OK:
                end = following[0] if following else len(text)
                call = malformed(plain(self._control.unmark(text[start:end].strip())), call.status, call.name or None)
            found.append((call, start, end))
            if following is None:
                break
            start, at = following
        if self._between is None and len(found) > 1:
            whole = plain(self._control.unmark(text[found[0][1] :].strip()))
            return [malformed(whole, "several_calls", found[0][0].name)]
        return [self._outside(text, found, place) for place in range(len(found))]

    def _call(self, text: str, start: int, at: int | None, types: SchemaTypes) -> tuple[ParsedCall, int, _Unit | None]:
        """The call that has its unit at `at`, where it ends, and the unit. A malformed call has only a status; `_calls`
        adds its text."""
        name = ""
        try:
            if at is None:
                raise NotACallError("malformed_structure")
            unit = self._units(text, at, types)
            name = unit.name if isinstance(unit.name, str) else ""
            self._check_joint(text, unit)
        except NotACallError as error:
            return ParsedCall(name, {}, str(error)), max(start + 1, at or 0), None
        arguments = self._control.unmark_all(unit.arguments)
        halves = len(MARKS.findall(text, at, unit.end))
        wrong = problem(unit.name, arguments)
        if wrong is None and marks_in(unit.arguments) > halves:
            wrong = "invalid_json"  # a half of a surrogate pair that the policy wrote as an escape
        if wrong is not None:
            return ParsedCall(name if wrong != "missing_name" else "", {}, wrong), unit.end, unit
        return ParsedCall(unit.name, arguments, OK, unit.id or "call_0"), unit.end, unit

    def _check_joint(self, text: str, unit: _Unit) -> None:
        """Check that what follows a call closes it."""
        between, end = self._joints(unit)
        if between is not None and between.match(text, unit.end):
            return
        closed = end.match(text, unit.end)
        if closed is None:
            raise NotACallError("malformed_structure" if text[unit.end :].strip() else "unclosed_block")
        if closed.end() == unit.end and text[unit.end :].strip():  # nothing closes a call, so nothing may follow
            raise NotACallError("malformed_structure")

    def _joints(self, unit: _Unit) -> tuple[re.Pattern[str] | None, re.Pattern[str]]:
        return (self._between_empty, self._end_empty) if unit.is_empty else (self._between, self._end)

    def _next(self, text: str, end: int, opening: _Opening, unit: _Unit | None) -> tuple[int, int | None] | None:
        """Where the next call opens, and where its unit stands, if it is opened rightly. None: there is none."""
        if unit is not None:
            between = self._joints(unit)[0]
            if between is not None and (joint := between.match(text, unit.end)):
                return joint.start(), joint.end()
        joint = self._between.search(text, end) if self._between is not None else None
        again = opening.first_call(text, end)
        if joint is not None and (again is None or joint.start() <= again):
            return joint.start(), joint.end()
        return None if again is None else (again, opening.begin_end(text, again))

    def _outside(self, text: str, found: list[tuple[ParsedCall, int, int]], place: int) -> ParsedCall:
        """The call; malformed if it stands inside of a thought. It does if the last thinking tag before it opens, or
        the next one after it closes. A tag inside of a call is text of the call."""
        call, start, end = found[place]
        opening, closing = self._think_tags
        if not closing or (closing not in text and opening not in text):
            return call
        between = _outsides(text, [(begin, stop) for _, begin, stop in found])
        before, after = "".join(between[: place + 1]), "".join(between[place + 1 :])
        opened = opening != "" and before.rfind(opening) > before.rfind(closing)
        closes = after.find(closing)
        closed = closes >= 0 and not 0 <= after.find(opening) < closes if opening else closes >= 0
        if not (opened or closed):
            return call
        return malformed(plain(self._control.unmark(text[start:end].strip())), "inside_thinking")

    # Units -----------------------------------------------------------------------------------------------------------

    def _object_unit(self, text: str, at: int, types: SchemaTypes) -> _Unit:
        form = self.grammar.call
        assert isinstance(form, JsonObject)
        value, end = call_formats.json_at(text, at)
        call_formats.check_keys(value, form.name_key, form.arguments_key, form.other_keys)
        own_id = value.get("id")
        return _Unit(value[form.name_key], value[form.arguments_key], end, own_id if isinstance(own_id, str) else None)

    def _json_unit(self, text: str, at: int, types: SchemaTypes) -> _Unit:
        name, end = self._name(text, at)
        joint = self._after_name.match(text, end)
        if joint is None:
            raise NotACallError("malformed_structure" if text[end:].strip() else "missing_arguments")
        arguments, end = call_formats.json_at(text, joint.end())
        own_id = joint.groupdict().get("id")
        if (number := joint.groupdict().get("number")) is not None:
            own_id = f"functions.{name}:{number}"
        return _Unit(name, arguments, end, own_id)

    def _parameters_unit(self, text: str, at: int, types: SchemaTypes) -> _Unit:
        form = self.grammar.call
        assert isinstance(form, NameThenParameters)
        name, end = self._name(text, at)
        after = self._after_name.match(text, end)
        opened = self._key_open.match(text, after.end()) if after else None
        if opened is None:
            return _Unit(name, {}, end, is_empty=True)
        arguments: dict[str, Any] = {}
        while opened is not None:
            start = opened.end()
            hits = [(hit.start(), hit.end(), is_string) for is_string, mark in self._key_marks
                    if (hit := mark.search(text, start))]  # fmt: skip
            if not hits:
                raise NotACallError("malformed_structure")
            key_end, value_start, is_string = min(hits)
            value_end = self._value_close.search(text, value_start)
            if value_end is None:
                raise NotACallError("malformed_structure")
            key, written = text[start:key_end], text[value_start : value_end.start()]
            if not key.strip() or MARKS.search(key) or "\n" in key or self._key_open.search(written):
                raise NotACallError("malformed_structure")
            if key in arguments:
                raise NotACallError("duplicate_key")
            quoted = form.string_mark is not None and is_string
            arguments[key] = written if quoted else types.value(name, key, written, python_words=form.python_words)
            end = value_end.end()
            opened = self._next_key_open.match(text, end)
        return _Unit(name, arguments, end)

    def _name(self, text: str, at: int) -> tuple[str, int]:
        found = _NAME.match(text, at)
        if found is None:
            raise NotACallError("missing_name")
        return found[0], found.end()


class _Opening:
    """Finds where text and calls open, in turns with a thought or in those without."""

    def __init__(self, openings: Openings, call: Any) -> None:
        self._text = flexible(openings.text)
        self._text_is_needed = MARKS.search(openings.text) is not None
        begin = openings.calls
        self._begin = flexible(begin)
        if begin.strip():
            trigger = _trigger(begin, openings.text)
            self._trigger = flexible(trigger)
            self._only_first = MARKS.search(trigger) is None and "<" not in trigger and "[" not in trigger
        else:  # a call is nothing but a JSON object or a name
            keys = f"{call.name_key}|{call.arguments_key}" if isinstance(call, JsonObject) else r"\w+"
            self._trigger, self._only_first = re.compile(_JSON_BEGIN % keys), True

    def first_call(self, text: str, start: int = 0) -> int | None:
        """Where the first call from `start` on opens; None: there is none."""
        if self._only_first:
            if text[:start].strip():
                return None
            found = self._trigger.match(text, len(text) - len(text.lstrip()))
        else:
            found = self._trigger.search(text, start)
        return None if found is None else found.start()

    def begin_end(self, text: str, start: int) -> int | None:
        """Where the call that opens at `start` has its unit; None: it is not opened rightly."""
        found = self._begin.match(text, start)
        return None if found is None else found.end()

    def opens_text(self, text: str) -> bool:
        """Whether the text opens as a text does."""
        return not self._text_is_needed or not text.strip() or self._opened(text) is not None

    def content(self, text: str) -> str:
        """The text without what opens it."""
        opened = self._opened(text)
        return text[opened.end() :] if opened else text

    def _opened(self, text: str) -> re.Match[str] | None:
        return self._text.match(text, len(text) - len(text.lstrip()))


def _trigger(begin: str, text_opening: str) -> str:
    """The part of `begin` by which a call is known: up to its first control token that no text opens with, or its
    first tag."""
    for found in MARKS.finditer(begin):
        if not text_opening.startswith(begin[: found.end()].strip()):
            return begin[: found.end()]
    tag = re.match(r"\s*<[^<>]*>", begin)
    return tag[0] if tag else begin.strip()


def _think_tags(grammar: Grammar, control: ControlTokens, generation_prompt: str) -> tuple[str, str]:
    """What opens and what closes a thought; empty: nothing does."""
    if not grammar.thinks:
        opening, closing = control.mark("<think>"), control.mark("</think>")
        return (opening, closing) if MARKS.fullmatch(opening) and MARKS.fullmatch(closing) else ("", "")
    closes = MARKS.search(grammar.thought_close)
    if grammar.thought_open.strip():
        opening = grammar.thought_open.strip()
    else:
        marks = MARKS.findall(generation_prompt)
        opening = marks[-1] if marks and generation_prompt.rstrip().endswith(marks[-1]) else ""
    return opening, closes[0] if closes else grammar.thought_close.strip()


def _outsides(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """The text between the spans, from its start to its end."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _source(text: str) -> str:
    return "".join(r"\s*" if part.isspace() else re.escape(part) for part in re.split(r"(\s+)", text) if part)


@functools.lru_cache(maxsize=256)
def flexible(text: str) -> re.Pattern[str]:
    """The text, with any white space, or none, where it has some."""
    return re.compile(_source(text))


def exact(text: str, *, last: bool) -> re.Pattern[str]:
    """The text beside a value, whose own white space must stay: what stands at the value's side is the template's or
    missing, and elsewhere it may be any.

    Args:
        last: whether the value stands after the text, or before it.
    """
    own = text.rstrip() if last else text.lstrip()
    edge = text[len(own) :] if last else text[: len(text) - len(own)]
    optional = f"(?:{re.escape(edge)})?" if edge else ""
    return re.compile(_source(own) + optional if last else optional + _source(own))
