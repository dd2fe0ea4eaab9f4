"""HarmonyReader: reads turns in the Harmony format (gpt-oss), in every order of a header that its models write.

Invariant: strict. A call is the last message of a turn; anything else that is addressed to a tool is malformed. The
chat template writes one of several headers that mean the same, so a grammar that was learned from it knows only that
one. This reader is a candidate beside it, and is taken if it reads back what the template writes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import rollout_service.chat.call_formats as call_formats
from rollout_service.chat.call_formats import NotACallError
from rollout_service.chat.control_tokens import MARKS, ControlTokens, marks_in, plain
from rollout_service.chat.parsed_turn import OK, ParsedCall, ParsedTurn, malformed, problem
from rollout_service.chat.template import ToolSchema

_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>")
_PREFIX = "functions."


class HarmonyReader:
    """Reads turns that follow `<|start|>assistant`."""

    name = "harmony"

    def __init__(self, control: ControlTokens) -> None:
        self._control = control
        self._start, channel, self._message, self._end = map(control.mark, _TOKENS)
        constrain = re.escape(control.mark("<|constrain|>"))  # ordinary text where the tokenizer lacks it
        self._header = re.compile(
            rf"\s*assistant(?:\s+to=(?P<before>[^\s{channel}]+))?\s*{channel}\s*(?P<channel>analysis|commentary|final)"
            rf"(?:\s+to=(?P<after>(?:(?!{constrain})\S)+))?\s*(?:{constrain})?\s*(?:json)?\s*"
        )

    @classmethod
    def fits(cls, control: ControlTokens) -> bool:
        """Whether the tokenizer has the format's control tokens."""
        return all(MARKS.fullmatch(control.mark(token)) for token in _TOKENS)

    def read(self, token_ids: Sequence[int], tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
        """Parse a turn's tokens, without the one that ended it. Arguments are JSON, so the tools are not needed."""
        marked = self._control.marked(token_ids)
        unmark = self._control.unmark
        thoughts: list[str] = []
        said: list[str] = []
        calls: list[ParsedCall] = []
        blocks = f"assistant{marked}".split(self._start)
        rest = len(blocks) - 1
        for number, block in enumerate(blocks):
            header, opened, body = block.partition(self._message)
            found = self._header.fullmatch(header)
            is_last, body = number == rest, body.removesuffix(self._end) if number < rest else body
            to = found["before"] or found["after"] if found else None
            if not opened and is_last and found is None and "to=" not in header:
                break  # cut by length inside of a header
            if found is None or not opened or (to and not (is_last and to.startswith(_PREFIX))):
                calls.append(malformed(plain(unmark(block)), "malformed_structure"))
            elif to:
                calls.append(self._call(to.removeprefix(_PREFIX), body))
            elif found["channel"] == "analysis":
                thoughts.append(body)
            else:
                said.append(body)
        reasoning = unmark("\n".join(thoughts).strip("\n")) if thoughts else None
        raw = unmark(self._start.join(blocks[len(thoughts) :]).removeprefix("assistant").strip())
        if len(calls) > 1:
            calls = [malformed(plain(raw), "several_calls")]
        return ParsedTurn(unmark("\n".join(said).strip()), reasoning, calls, raw)

    def _call(self, name: str, body: str) -> ParsedCall:
        text = body.strip()
        try:
            value, end = call_formats.json_at(text, 0)
            if end != len(text):
                raise NotACallError("invalid_json")
        except NotACallError as error:
            return malformed(plain(self._control.unmark(body)), str(error), name)
        except (RecursionError, ValueError):
            return malformed(plain(self._control.unmark(body)), "unreadable", name)
        arguments = self._control.unmark_all(value)
        wrong = problem(name, arguments)
        if wrong is None and marks_in(value) > marks_in(text):
            wrong = "invalid_json"  # half of a surrogate pair that was written as an escape
        if wrong is not None:
            return malformed(plain(self._control.unmark(body)), wrong, name)
        return ParsedCall(name, arguments, OK)
