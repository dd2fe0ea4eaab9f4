"""RenderersReader: reads a sampled turn with a tool-call parser of the `renderers` package.

Invariant: a call that the parser found is checked to be exactly one call (`rollout_service.chat.call_formats`), and one
that stands inside of a thought is malformed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rollout_service.chat.call_formats import NotACallError, json_at
from rollout_service.chat.control_tokens import ControlTokens
from rollout_service.chat.parsed_turn import OK, ParsedCall, ParsedTurn, checked, malformed
from rollout_service.chat.template import ToolSchema
from rollout_service.chat.tool_parsers import tool_parsers


class RenderersReader:
    """Reads turns with the parser called `name`. Thoughts stand between `<think>` and `</think>`."""

    def __init__(
        self, name: str, backend: Any, control: ControlTokens, decode: Callable[[Sequence[int]], str], *, thinking: bool
    ) -> None:
        """
        Args:
            backend: the tokenizer's `tokenizers.Tokenizer`.
            decode: gives the text of tokens.
            thinking: whether the generation prompt opens a thought.
        """
        self.name = name
        self._control = control
        self._decode = decode
        self._opens_thought = thinking
        self._think_ids = backend.token_to_id("<think>"), backend.token_to_id("</think>")
        self._parser = tool_parsers()[name](_ParserTokenizer(backend, decode))

    def read(self, token_ids: Sequence[int], tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
        """Parse a turn's tokens, without the one that ended it. These formats type their arguments themselves."""
        reasoning, ids = self._split_thought(list(token_ids))
        raw = self._own(ids)
        try:
            content_ids, found = self._parser.extract(ids)
            spans = [call.token_span for call in found]
            calls = [
                self._with_control_tokens(
                    checked(call, self.name, inside_thinking=inside), ids[slice(*call.token_span)]
                )
                for call, inside in zip(found, self._inside_thinking(ids, spans), strict=True)
            ]
        except (RecursionError, ValueError):  # JSON with thousands of nested brackets, or of digits in a number
            return ParsedTurn("", reasoning, [malformed(str(raw), "unreadable")], raw)
        if not calls and len(content_ids) < len(ids):  # the section for calls holds no call
            calls = [malformed(self._decode(ids[len(content_ids) :]), "malformed_structure")]
        return ParsedTurn(self._own(content_ids, strip=True), reasoning, calls, raw)

    def _own(self, ids: Sequence[int], *, strip: bool = False, edges: str | None = None) -> str:
        """The text of the tokens, which remembers its control tokens."""
        text = self._decode(ids)
        text = text.strip(edges) if strip else text
        if self._control.ids.isdisjoint(ids):
            return text
        marked = self._control.marked(ids)
        own = self._control.unmark(marked.strip(edges) if strip else marked)
        return own if own == text else text

    def _with_control_tokens(self, call: ParsedCall, ids: Sequence[int]) -> ParsedCall:
        """The call; its strings remember which of their characters were control tokens."""
        if call.status != OK or self.name != "qwen3" or len(self._control.ids.intersection(ids)) <= 2:
            return call
        marked = self._control.marked(ids)
        try:
            value, _ = json_at(marked, marked.index("{"))
        except (NotACallError, ValueError):
            return call
        own = self._control.unmark_all(value.get("arguments"))
        return ParsedCall(call.name, own, OK) if own == call.arguments else call

    def _split_thought(self, ids: list[int]) -> tuple[str | None, list[int]]:
        opening, closing = self._think_ids
        if opening is None or closing is None:
            return None, ids
        start = 0
        if not self._opens_thought:
            if opening not in ids or self._decode(ids[: ids.index(opening)]).strip():
                return None, ids
            start = ids.index(opening) + 1
        end = ids.index(closing, start) if closing in ids[start:] else len(ids)
        return self._own(ids[start:end], strip=True, edges="\n"), ids[end + 1 :]

    def _inside_thinking(self, ids: list[int], spans: Sequence[tuple[int, int]]) -> list[bool]:
        """For each block at these positions of `ids`: whether it stands inside thinking. It does if the last thinking
        token before it opens, or the next one after it closes. A thinking token inside a block is text of the block."""
        opening, closing = self._think_ids
        if opening is None or closing is None or not (opening in ids or closing in ids):
            return [False] * len(spans)
        edges = [0, *(position for span in spans for position in span), len(ids)]
        between = [
            [i for i in ids[start:end] if i in (opening, closing)]
            for start, end in zip(edges[::2], edges[1::2], strict=True)
        ]
        inside = []
        for number in range(len(spans)):
            before = [token for part in between[: number + 1] for token in part]
            after = [token for part in between[number + 1 :] for token in part]
            inside.append(before[-1:] == [opening] or after[:1] == [closing])
        return inside


class _ParserTokenizer:
    """What a `renderers` tool parser needs from a tokenizer. It uses the Rust tokenizer directly, because the
    transformers wrapper sets truncation on each call, which is not thread-safe."""

    unk_token_id = None

    def __init__(self, backend: Any, decode: Callable[[Sequence[int]], str]) -> None:
        self._backend = backend
        self._decode = decode

    def convert_tokens_to_ids(self, token: str) -> int | None:
        number = self._backend.token_to_id(token)
        return None if number is None else int(number)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self._decode(token_ids)
