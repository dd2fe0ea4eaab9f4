"""Control tokens inside text: kept out of what others wrote, and told from ordinary text in what the policy sampled.

Invariant: text inside a message never becomes a control token, unless the policy itself sampled that token there.

* A *shielded* text has `CUT` after the first character of everything that reads like a control token. The rendered
  conversation is split at `CUT`, and each piece is encoded on its own.
* A *marked* text has one character in place of each control token, so that the token differs from the same letters
  written as ordinary text. These characters are halves of surrogate pairs, which no decoded text contains.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

CUT = "\udfff"
"""Where a shielded text is cut."""

POINT = "\udffe"
"""Marks one place in a rendered conversation."""

_FIRST, _LAST = 0xD800, 0xDFFD

_HALVES = re.compile("[\ud800-\udfff]")
MARKS = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
"""Finds the mark of a control token."""


_KEPT_TEXTS, _LONGEST_KEPT = 4096, 65_536
"""Number of shielded texts that are kept, and the length of the longest. Each turn shields its whole conversation, so
every text comes again."""


class PolicyText(str):
    """Text that the policy sampled, in which some characters were control tokens. `spans` holds where these stand."""

    spans: tuple[tuple[int, int], ...] = ()

    def __reduce__(self) -> Any:
        return str, (str(self),)


class ControlTokens:
    """The added tokens of a tokenizer."""

    def __init__(self, backend: Any, template: str) -> None:
        """
        Args:
            backend: the tokenizer's `tokenizers.Tokenizer`.
            template: text of the chat template. If there are more added tokens than marks, its own come first.
        """
        self._backend = backend
        added = backend.get_added_tokens_decoder()
        self.ids = frozenset(added)
        """Ids of all added tokens."""
        self.special_ids = frozenset(number for number, token in added.items() if token.special)
        """Those that decoding with `skip_special_tokens` leaves out."""
        written = {token.content: number for number, token in sorted(added.items()) if token.content.strip()}
        texts = sorted(written, key=len, reverse=True)
        self._starts = re.compile(_alternatives((text[0], f"(?={re.escape(text[1:])})") for text in texts))
        self._shield_again = functools.lru_cache(_KEPT_TEXTS)(self._shield_new)
        ranked = sorted(texts, key=lambda text: text not in template)[: _LAST - _FIRST + 1]
        self._mark_of = {text: chr(_FIRST + place) for place, text in enumerate(ranked)}
        self._text_of = {mark: text for text, mark in self._mark_of.items()}
        self._mark_of_id = {written[text]: mark for text, mark in self._mark_of.items()}
        longest_first = sorted(ranked, key=len, reverse=True)
        self._written = re.compile(_alternatives((text[0], re.escape(text[1:])) for text in longest_first))
        self.plain_edges = {
            token.content for token in added.values() if not (token.lstrip or token.rstrip or token.single_word)
        }
        """Texts of the tokens at which a text may be split: they take no white space beside them."""

    def id(self, text: str) -> int:
        """The id of a control token.

        Raises:
            KeyError: there is no such token.
        """
        number = self._backend.token_to_id(text)
        if number is None:
            raise KeyError(text)
        return int(number)

    def has_mark(self, number: int) -> bool:
        """Whether the token is one that marked texts show by its mark."""
        return number in self._mark_of_id

    def shield(self, value: Any) -> Any:
        """The value with every text in it shielded: strings, and those in lists and dicts, keys included. Half of a
        surrogate pair becomes a question mark."""
        if type(value) is str:  # most are
            return self._shield_text(value)
        if isinstance(value, str):
            if isinstance(value, PolicyText):
                return self._shield_around(value)
            return self._shield_text(value)
        if isinstance(value, dict):
            return {self.shield(key): self.shield(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.shield(item) for item in value]
        return value

    def _shield_text(self, text: str) -> str:
        return self._shield_again(text) if len(text) <= _LONGEST_KEPT else self._shield_new(text)

    def _shield_new(self, text: str) -> str:
        if not text.isascii():
            text = _HALVES.sub("?", text)
        return self._starts.sub(rf"\g<0>{CUT}", text)

    def _shield_around(self, text: PolicyText) -> str:
        parts, end = [], 0
        for start, stop in text.spans:
            parts += [self._shield_text(text[end:start]), text[start:stop]]
            end = stop
        return "".join([*parts, self._shield_text(text[end:])])

    def mark(self, text: str) -> str:
        """A rendered text, marked. Shielded control tokens stay text, and the cuts are taken out."""
        return self._written.sub(lambda found: self._mark_of[found[0]], text).replace(CUT, "")

    def marked(self, token_ids: Sequence[int]) -> str:
        """The text of the tokens, marked."""
        parts: list[str | list[int]] = []
        for number in token_ids:
            mark = self._mark_of_id.get(number)
            if mark is not None:
                parts.append(mark)
            elif parts and isinstance(parts[-1], list):
                parts[-1].append(number)
            else:
                parts.append([number])
        runs = [part for part in parts if isinstance(part, list)]
        texts = iter(self._backend.decode_batch(runs, skip_special_tokens=False) if runs else ())
        return "".join(part if isinstance(part, str) else next(texts) for part in parts)

    def same_text_after(self, token_ids: Sequence[int], rendered: Sequence[int]) -> list[int] | None:
        """The end of `rendered`, if what stands before it reads as `token_ids` do, in other tokens. None: it does not,
        or the two part inside of a text."""
        ours, theirs = np.asarray(token_ids, np.int32), np.asarray(rendered, np.int32)
        if not len(ours) or not self.has_mark(int(ours[-1])):
            return None
        while len(ours):
            common = min(len(ours), len(theirs))
            different = np.flatnonzero(ours[:common] != theirs[:common])
            if not len(different):
                return theirs[len(ours) :].tolist() if len(ours) <= len(theirs) else None
            start = int(different[0])
            while start and not self.has_mark(int(ours[start - 1])):
                start -= 1
            own, other = self._up_to_mark(ours[start:]), self._up_to_mark(theirs[start:])
            if not other or self.marked(own) != self.marked(other):
                return None
            ours, theirs = ours[start + len(own) :], theirs[start + len(other) :]
        return theirs.tolist()

    def _up_to_mark(self, token_ids: npt.NDArray[np.int32]) -> list[int]:
        """The tokens up to and with the first that has a mark; none if none has."""
        found: list[int] = []
        for number in map(int, token_ids):
            found.append(number)
            if self.has_mark(number):
                return found
        return []

    def unmark(self, marked: str) -> str:
        """The marked text as it reads. It remembers which of its characters were control tokens."""
        if MARKS.search(marked) is None:
            return marked
        parts, spans, end, length = [], [], 0, 0
        for found in MARKS.finditer(marked):
            text = self._text_of.get(found[0])
            if text is None:  # half of a surrogate pair that the policy wrote as an escape
                continue
            length += found.start() - end
            spans.append((length, length + len(text)))
            parts += [marked[end : found.start()], text]
            end, length = found.end(), length + len(text)
        own = PolicyText("".join([*parts, marked[end:]]))
        own.spans = tuple(spans)
        return own

    def unmark_all(self, value: Any) -> Any:
        """The value with every marked text in it unmarked."""
        if isinstance(value, str):
            return self.unmark(value)
        if isinstance(value, dict):
            return {self.unmark(key): self.unmark_all(item) for key, item in value.items()}
        return [self.unmark_all(item) for item in value] if isinstance(value, list) else value


def marks_in(value: Any) -> int:
    """Number of marks in the strings of a value."""
    if isinstance(value, str):
        return len(MARKS.findall(value))
    if isinstance(value, dict):
        return sum(marks_in(item) for pair in value.items() for item in pair)
    return sum(map(marks_in, value)) if isinstance(value, list) else 0


def plain(value: Any) -> Any:
    """The value with ordinary strings in place of every `PolicyText`."""
    if type(value) is str:  # most are
        return value
    if isinstance(value, PolicyText):
        return str(value)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _alternatives(texts: Iterable[tuple[str, str]]) -> str:
    """A pattern for texts, each given as its first character and a pattern of the rest. Grouped by first character, so
    that the search skips all others quickly."""
    groups: dict[str, list[str]] = {}
    for first, rest in texts:
        groups.setdefault(first, []).append(rest)
    return "|".join(f"{re.escape(first)}(?:{'|'.join(rests)})" for first, rests in groups.items()) or "(?!)"
