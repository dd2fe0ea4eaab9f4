"""Grammar: how a chat template writes thoughts, text and calls.

Invariant: every text in it was cut out of the template's own renderings of probe turns; `learn_grammar` knows no model
family. All texts are marked (`rollout_service.chat.control_tokens`). Reading is `rollout_service.chat.grammar_reader`.

A turn is: a thought; then text, or `begin`, calls with `between` between them, and `end`. A call is written in one of
three ways: as a JSON object that holds the name and the arguments, as the name and a JSON object, or as the name and
the arguments one by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rollout_service.chat.closing import KEY, NAME, TEXT, VALUE
from rollout_service.chat.control_tokens import MARKS

THOUGHT = "THINKQ9"
_NAME_2, _KEY_2, _VALUE_2 = "NAMFQ9", "KEZQ9", "VALQ8"

Call = tuple[str, dict[str, Any]]
Written = Callable[[str, Sequence[Call], str | None], str]
"""Writes a turn of this text, these calls and this thought. Gives its marked text without the token that closes it;
raises `NotLearned` if the template does not write it."""


class NotLearned(Exception):
    """The template writes turns in a way that cannot be learned. The message says which."""


@dataclass(frozen=True, slots=True)
class Openings:
    """What stands before a text and before the first call."""

    text: str
    calls: str


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A call is one JSON object."""

    name_key: str
    arguments_key: str
    other_keys: frozenset[str]


@dataclass(frozen=True, slots=True)
class NameThenJson:
    """A call is its name, this text, and the arguments as a JSON object."""

    after_name: str


@dataclass(frozen=True, slots=True)
class NameThenParameters:
    """A call is its name and its arguments one by one, with values that are not quoted."""

    after_name: str
    key_open: str
    next_key_open: str
    key_to_value: frozenset[str]
    string_mark: str | None
    """The one of `key_to_value` that only strings have; None: strings have no mark of their own."""
    value_close: str
    between_empty: str | None
    """`between` after a call without arguments."""
    end_empty: str
    """`end` after a call without arguments."""
    python_words: bool
    """Whether it writes True, False and None."""


CallForm = JsonObject | NameThenJson | NameThenParameters


@dataclass(frozen=True, slots=True)
class Grammar:
    """How turns are written."""

    thought_open: str
    """Empty: the prompt opens the thought."""
    thought_close: str
    """Empty: the template writes no thoughts."""
    after_thought: Openings | None
    """What opens the rest of a turn that thought; None: the template writes no thoughts."""
    bare: Openings | None
    """What opens a turn without a thought; None: every turn thinks."""
    text_close: str
    call: CallForm
    between: str | None
    """From the end of one call to the begin of the next; None: a turn has one call."""
    end: str

    @property
    def thinks(self) -> bool:
        """Whether the template has a place for thoughts."""
        return bool(self.thought_close)


def learn_grammar(written: Written) -> Grammar:
    """Learn how the template writes turns.

    Raises:
        NotLearned: says what cannot be learned.
    """
    thought_open = thought_close = ""
    after_thought = None
    thinks = _writes_thoughts(written)
    if thinks:
        thought_open, thought_close, after_thought = _thinking(written)
    bare = _bare(written, thought_open, thought_close, required=not thinks)
    own = _From(written, THOUGHT if thinks else None)
    text = written(TEXT, (), THOUGHT if thinks else None)
    call, end = _call_form(own)
    openings = after_thought or bare
    assert openings is not None
    return Grammar(
        thought_open=thought_open.strip("\n"),
        thought_close=thought_close,
        after_thought=after_thought,
        bare=bare,
        text_close=text[text.index(TEXT) + len(TEXT) :],
        call=call,
        between=_between_calls(own, call),
        end=end,
    )


@dataclass(frozen=True)
class _From:
    """Writes turns with calls, from the end of their thought on."""

    written: Written
    thought: str | None

    def __call__(self, *calls: Call) -> str:
        text = self.written("", calls, self.thought)
        return text if self.thought is None else text[text.index(self.thought) + len(self.thought) :]


def _writes_thoughts(written: Written) -> bool:
    try:
        return all(THOUGHT in written(content, calls, THOUGHT) for content, calls in ((TEXT, ()), ("", _ONE)))
    except NotLearned:
        return False


_ONE: tuple[Call, ...] = ((NAME, {KEY: VALUE}),)


def _thinking(written: Written) -> tuple[str, str, Openings]:
    """What opens and closes a thought, and what follows it."""
    text, call = written(TEXT, (), THOUGHT), written("", _ONE, THOUGHT)
    before_text, before_call = _between(text, THOUGHT, TEXT), _between(call, THOUGHT, NAME)
    shared = before_text[: _common_prefix(before_text, before_call)]
    last = max((found.end() for found in MARKS.finditer(shared)), default=0)
    close = (shared[:last] or shared).strip("\n")
    if not close:
        raise NotLearned("nothing closes a thought")
    openings = Openings(before_text[before_text.index(close) + len(close) :].strip(), _call_begin(call, THOUGHT, close))
    return text[: text.index(THOUGHT)], close, openings


def _bare(written: Written, thought_open: str, thought_close: str, *, required: bool) -> Openings | None:
    """What opens a turn without a thought. An empty thought that the template writes there is left out."""
    try:
        text, call = written(TEXT, (), None), written("", _ONE, None)
    except NotLearned:
        if required:
            raise
        return None
    before = text[: text.index(TEXT)]
    if thought_close and thought_close in before:
        before = before[before.index(thought_close) + len(thought_close) :]
    return Openings(before.strip(), _call_begin(call, "", thought_close))


def _call_begin(turn: str, after: str, thought_close: str) -> str:
    """What stands before the first call: after the word `after` and what closes a thought."""
    start = turn.index(after) + len(after)
    if thought_close and (at := turn.find(thought_close, start)) >= 0 and at < turn.index(NAME):
        start = at + len(thought_close)
    found = _object(turn, turn.index(NAME))
    return turn[start : found[0] if found else turn.index(NAME)].lstrip()


def _call_form(own: _From) -> tuple[CallForm, str]:
    """How a call is written, and what follows the last one."""
    one = own(*_ONE)
    at = one.index(NAME)
    if found := _object(one, at):
        _, end, (name_key, arguments_key, others) = found
        return JsonObject(name_key, arguments_key, others), one[end:]
    at += len(NAME)
    for brace in (place for place, character in enumerate(one) if character == "{" and place >= at):
        try:
            arguments, end = json.JSONDecoder().raw_decode(one, brace)
        except ValueError:
            continue
        if arguments == {KEY: VALUE}:
            return NameThenJson(one[at:brace]), one[end:]
    if json.dumps(json.dumps({KEY: VALUE}))[1:-1] in one:
        raise NotLearned("the arguments of a call are JSON inside of a JSON string")
    if KEY not in one or VALUE not in one:
        raise NotLearned("a call is written without its arguments")
    return _parameters(own, one, at)


def _parameters(own: _From, one: str, at: int) -> tuple[CallForm, str]:
    """The form of arguments that are written one by one, and what follows the last call."""
    two, number = own((NAME, {KEY: VALUE, _KEY_2: _VALUE_2})), own((NAME, {KEY: 17}))
    empty, truth = own((NAME, {})), own((NAME, {KEY: True}))
    name_to_key, value_to_key = one[at : one.index(KEY)], _between(two, VALUE, _KEY_2)
    after_value = one[one.index(VALUE) + len(VALUE) :]
    shared = _common_prefix(name_to_key[::-1], value_to_key[::-1])
    key_open = name_to_key[len(name_to_key) - shared :]
    value_close = value_to_key[: len(value_to_key) - shared]
    kept = _common_prefix(after_value, value_close)  # the rest of it belongs to the next key's opening
    if not value_close[:kept].strip():
        raise NotLearned("nothing closes the value of an argument")
    key_to_value, key_to_number = _between(one, KEY, VALUE), _between(number, KEY, "17")
    try:
        first = own((NAME, {}), (_NAME_2, {KEY: VALUE}))
        between_empty = first[first.index(NAME) + len(NAME) : first.index(_NAME_2)]
    except NotLearned:
        between_empty = None
    form = NameThenParameters(
        after_name=name_to_key[: len(name_to_key) - shared],
        key_open=key_open,
        next_key_open=value_close[kept:] + key_open,
        key_to_value=frozenset({key_to_value, key_to_number}),
        string_mark=key_to_value if key_to_value != key_to_number else None,
        value_close=value_close[:kept],
        between_empty=between_empty,
        end_empty=empty[empty.index(NAME) + len(NAME) :],
        python_words=truth[truth.index(KEY) + len(KEY) + len(key_to_number) :].startswith("True"),
    )
    return form, after_value[kept:]


def _between_calls(own: _From, call: CallForm) -> str | None:
    """What stands between two calls; None: the template refuses two, or does not write both."""
    try:
        two = own(*_ONE, (_NAME_2, {KEY: _VALUE_2}))
    except NotLearned:
        return None
    if _NAME_2 not in two or _VALUE_2 not in two or NAME not in two:
        return None
    first, second = two.index(NAME), two.index(_NAME_2)
    if isinstance(call, JsonObject):
        one, other = _object(two, first), _object(two, second)
        return two[one[1] : other[0]] if one and other else None
    if isinstance(call, NameThenJson):
        brace = two.index("{", first + len(NAME) + len(call.after_name) - call.after_name.count("{"))
        _, end = json.JSONDecoder().raw_decode(two, brace)
        return two[end:second]
    end = two.index(VALUE, first) + len(VALUE)
    if not two.startswith(call.value_close, end):
        raise NotLearned("two calls are written otherwise than one")
    return two[end + len(call.value_close) : second]


def _object(text: str, name_at: int) -> tuple[int, int, tuple[str, str, frozenset[str]]] | None:
    """Where the JSON object stands that holds the name and the arguments, and their keys; None: there is none."""
    for brace in (place for place in range(name_at - 1, -1, -1) if text[place] == "{"):
        try:
            value, end = json.JSONDecoder().raw_decode(text, brace)
        except ValueError:
            continue
        if not isinstance(value, dict) or end <= name_at:
            continue
        names = [key for key, item in value.items() if item in (NAME, _NAME_2)]
        arguments = [key for key, item in value.items() if isinstance(item, dict) and KEY in item]
        if len(names) == len(arguments) == 1:
            return brace, end, (names[0], arguments[0], frozenset(value) - {names[0], arguments[0]})
    return None


def _between(text: str, left: str, right: str) -> str:
    start = text.index(left) + len(left)
    return text[start : text.index(right, start)]


def _common_prefix(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
