"""ChatCodec: turns chat messages into context tokens, and policy tokens into a message.

Invariant: the tokens are those that the tokenizer's own chat template gives. The codec derives everything (opening
prompt, what follows a turn, how a turn is written) from that template, and takes the parser for tool calls from the
`renderers` package. `prove()` checks all of it on probe conversations before the first episode. A template that cannot
be proved is refused, and the error shows the first token that differs.

Text inside a message never becomes a control token: `<|im_end|>` in a tool result is encoded as ten plain characters.
To achieve that, a character that occurs nowhere else is inserted after the first character of every control token's
text inside a message. The rendered text is then cut at these characters, and each piece is encoded on its own.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rollout_service.chat.parsed_turn import ChatMessage, ParsedTurn, checked, malformed, tool_call
from rollout_service.chat.proof import choose_parser, prove, turn_ends
from rollout_service.chat.text_cache import TextCache
from rollout_service.errors import CodecError, first_line

ToolSchema = dict[str, Any]

EMBEDDED_TOKENIZER = Path(__file__).parents[1] / "assets" / "tokenizer"
"""The small tokenizer that ships with the package; the default where no model is named."""

_MARKER = "probe-9f41c7"

_CACHE_BYTES = 32 << 20
"""Size of the cache of texts and their tokens. A domain's system prompt takes 50 to 150 KB."""


class ChatCodec:
    """Encodes and parses turns with one tokenizer. Thread-safe: it keeps no state of a conversation."""

    def __init__(self, tokenizer: Any, *, name: str = "", tool_parser: str = "auto") -> None:
        """Derive the codec from a fast Hugging Face tokenizer with a chat template, and prove it.

        Args:
            tokenizer: a `PreTrainedTokenizerFast`.
            name: the tokenizer's name in trajectories.
            tool_parser: name of a `renderers` parser; `auto`: the first one that reads back what the template writes.

        Raises:
            CodecError: the tokenizer has no chat template, is not a fast one, or the codec could not be proved.
        """
        self.name = name or str(getattr(tokenizer, "name_or_path", ""))
        if not getattr(tokenizer, "chat_template", None):
            raise CodecError(
                f"The tokenizer {self.name!r} has no chat template.",
                "Use the instruct model's tokenizer, or save one with tokenizer.chat_template set.",
            )
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise CodecError(f"The tokenizer {self.name!r} has no fast version.", "Save it with a tokenizer.json.")
        self._tokenizer = tokenizer
        self._backend = backend
        self._backend.no_truncation()
        self._backend.no_padding()
        self._encode_plain = TextCache(self._encode_uncached, _CACHE_BYTES)
        added = backend.get_added_tokens_decoder()
        self.control_ids = frozenset(added)
        """Ids of all added tokens. Text inside a message never becomes one of them."""
        texts = sorted({token.content for token in added.values() if token.content.strip()}, key=len, reverse=True)
        self._control_start = re.compile("|".join(f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in texts) or "(?!)")
        self.end_of_turn, self.end_of_turn_id = self._find_end_of_turn(texts)
        eos = tokenizer.eos_token_id
        self.stop_token_ids = sorted({self.end_of_turn_id} | ({eos} if eos is not None else set()))
        self._think_ids = (self._token_id("<think>"), self._token_id("</think>"))
        self._opens_reasoning = self._generation_prompt().rstrip().endswith("<think>")
        self.supports_reasoning = _MARKER in self._text(
            [_user("hi"), {"role": "assistant", "content": "x", "reasoning_content": _MARKER}]
        )
        self.tokenizer_fingerprint = _fingerprint(backend.to_str())
        self.template_fingerprint = _fingerprint(str(tokenizer.chat_template))
        self.tokenizer_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        """One past the largest id. The model's output layer may have more rows, and not every id below has a token."""
        self.turn_end_ids = turn_ends(self, {number for number, token in added.items() if token.special})
        """Ids that may end a turn: the stop tokens, and special tokens that occur nowhere else in a turn."""
        self._format, self._parser = choose_parser(self, _ParserTokenizer(self), tool_parser)
        self.rewrites_history = prove(self)

    @classmethod
    def load(cls, path: str | None = None, *, tool_parser: str = "auto") -> ChatCodec:
        """Load a tokenizer from a folder, or by a hub name that `transformers` can find. None: the embedded one.

        Raises:
            CodecError: no tokenizer can be loaded from there, or the codec cannot be proved.
        """
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it advises torch, which nothing here needs
        import transformers

        source = str(EMBEDDED_TOKENIZER if path is None else path)
        looks_local = path is not None and (path.startswith((".", "/", "~")) or path.count("/") != 1)
        if looks_local and not Path(source).expanduser().is_dir():
            raise CodecError(
                f"policy.tokenizer: there is no folder {source!r}.", "Give the folder that holds tokenizer.json."
            )
        try:
            # AutoTokenizer imports torch where it is installed, which costs each process seconds and 180 MB.
            loader = transformers.PreTrainedTokenizerFast if path is None else transformers.AutoTokenizer
            tokenizer = loader.from_pretrained(str(Path(source).expanduser()), trust_remote_code=False)
        except Exception as error:
            raise CodecError(
                f"policy.tokenizer: no tokenizer can be loaded from {source!r}: {first_line(error)}",
                "Give a folder with a tokenizer, or a model name that this machine can download.",
            ) from error
        return cls(tokenizer, name="embedded" if path is None else source, tool_parser=tool_parser)

    # Context ---------------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """Token ids of the whole conversation, up to where the policy's next turn starts."""
        shielded, cut = self._shield(messages, tools)
        return self._encode(self._text(shielded, tools, generation_prompt=True), cut)

    def bridge(self, new_messages: Sequence[ChatMessage]) -> list[int]:
        """Token ids of `new_messages` as the template writes them, from a turn's end-of-turn token to the next turn."""
        calls = [tool_call(_MARKER, {}, m.get("tool_call_id", "call_0")) for m in new_messages if m["role"] == "tool"]
        turn: ChatMessage = {"role": "assistant", "content": _MARKER}
        if calls:
            turn["tool_calls"] = calls
        shielded, cut = self._shield([_user("hi"), turn, *new_messages])
        text = self._text(shielded, generation_prompt=True)
        end = self._find_end(text, text.find(_MARKER))
        return self._encode(text[end + len(self.end_of_turn) :], cut)

    def encode_turn(
        self, content: str = "", calls: Sequence[tuple[str, dict[str, Any]]] = (), reasoning: str | None = None
    ) -> list[int]:
        """Token ids that a policy would sample to write this turn, including the end-of-turn token.

        Args:
            calls: name and arguments of each tool call.
            reasoning: left out if the template has no place for it.
        """
        message: ChatMessage = {"role": "assistant", "content": content}
        if reasoning is not None:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [tool_call(name, arguments) for name, arguments in calls]
        shielded, cut = self._shield([message])
        text = self._text([_user("hi"), *shielded])
        prompt = self._turn_opening
        if not text.startswith(prompt):
            raise CodecError(
                f"The chat template of {self.name!r} writes a turn differently from how its generation prompt opens "
                f"it: {text[:80]!r} does not start with {prompt[-80:]!r}.",
                "Use a template whose generation prompt is the start of its assistant turn.",
            )
        body = text[len(prompt) : self._find_end(text, len(prompt))]
        return [*self._encode(body, cut), self.end_of_turn_id]

    @functools.cached_property
    def _turn_opening(self) -> str:
        return self._text([_user("hi")], generation_prompt=True)

    def encode_written(self, text: str) -> list[int]:
        """Token ids of text that a policy writes: the text of a control token becomes that token."""
        return self._tokens(text)

    # Turns -----------------------------------------------------------------------------------------------------------

    def parse(self, token_ids: Sequence[int]) -> ParsedTurn:
        """Parse the tokens that the policy sampled. Never raises: a malformed call is marked as such."""
        ids = list(token_ids)
        if ids and ids[-1] in self.turn_end_ids:
            ids.pop()
        reasoning, ids = self._split_reasoning(ids)
        raw = self.decode(ids)
        try:
            content_ids, found = self._parser.extract(ids)
            spans = [call.token_span for call in found]
            calls = [
                checked(call, self._format, inside_thinking=inside)
                for call, inside in zip(found, self._inside_thinking(ids, spans), strict=True)
            ]
        except (RecursionError, ValueError):  # JSON with thousands of nested brackets, or of digits in a number
            return ParsedTurn("", reasoning, [malformed(raw, "unreadable")], raw)
        if not calls and len(content_ids) < len(ids):  # the section for calls holds no call
            calls = [malformed(self.decode(ids[len(content_ids) :]), "malformed_structure")]
        return ParsedTurn(self.decode(content_ids).strip(), reasoning, calls, raw)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, including control tokens. An id that has no token gives no text."""
        # The batch method releases the interpreter's lock.
        return str(self._backend.decode_batch([list(token_ids)], skip_special_tokens=False)[0]) if token_ids else ""

    def unknown_ids(self, token_ids: Iterable[int]) -> list[int]:
        """The ids for which the tokenizer has no token."""
        return [i for i in token_ids if not 0 <= i < self.tokenizer_size or self._backend.id_to_token(i) is None]

    def _split_reasoning(self, ids: list[int]) -> tuple[str | None, list[int]]:
        opening, closing = self._think_ids
        if opening is None or closing is None:
            return None, ids
        start = 0
        if not self._opens_reasoning:
            if opening not in ids or self.decode(ids[: ids.index(opening)]).strip():
                return None, ids
            start = ids.index(opening) + 1
        end = ids.index(closing, start) if closing in ids[start:] else len(ids)
        return self.decode(ids[start:end]).strip("\n"), ids[end + 1 :]

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

    # Rendering -------------------------------------------------------------------------------------------------------

    def _text(
        self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema] = (), *, generation_prompt: bool = False
    ) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=generation_prompt
                )
            )
        except Exception as error:
            roles = [m["role"] for m in messages]
            raise CodecError(
                f"The chat template of {self.name!r} cannot render a conversation of {roles}: {error}",
                "Use a template that renders user, assistant and tool messages, with tools and without.",
            ) from error

    def _shield(
        self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema] = ()
    ) -> tuple[list[ChatMessage], str]:
        """The messages with a cut inside every control token's text, and the character that marks a cut."""
        taken = {str(self._tokenizer.chat_template), *_strings([*messages, *tools])}
        cut = next(char for char in map(chr, range(0xE000, 0x110000)) if not any(char in text for text in taken))

        def shield(value: Any) -> Any:
            if isinstance(value, str):
                return self._control_start.sub(rf"\g<0>{cut}", value)
            if isinstance(value, dict):
                return {shield(key): shield(item) for key, item in value.items()}
            if isinstance(value, list):
                return [shield(item) for item in value]
            return value

        return [shield(message) for message in messages], cut

    def _encode(self, text: str, cut: str) -> list[int]:
        ids: list[int] = []
        for piece in text.split(cut):
            for number, part in enumerate(piece.split(self.end_of_turn)):
                if number:
                    ids.append(self.end_of_turn_id)
                if part:
                    ids.extend(self._encode_plain(part))
        return ids

    def _encode_uncached(self, text: str) -> array[int]:
        """Token ids of the text. `_encode_plain` caches them, because every episode has its domain's long prompt."""
        try:
            return array("i", self._tokens(text))
        except (UnicodeEncodeError, TypeError):  # a lone surrogate has no UTF-8 form
            return array("i", self._tokens(text.encode("utf-8", "replace").decode("utf-8")))

    def _tokens(self, text: str) -> list[int]:
        """Token ids of the text, as the tokenizer gives them. The batch method releases the interpreter's lock. A tool
        result can be megabytes long, and would otherwise stop every thread for a second."""
        return list(self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _generation_prompt(self) -> str:
        return self._turn_opening[len(self._text([_user("hi")])) :]

    def _find_end_of_turn(self, added: Sequence[str]) -> tuple[str, int]:
        text = self._text([_user("hi"), {"role": "assistant", "content": _MARKER}])
        tail = text[text.index(_MARKER) + len(_MARKER) :] if _MARKER in text else ""
        found = re.search("|".join(map(re.escape, added)) or "(?!)", tail)
        token = self._token_id(found[0]) if found else None
        if found is None or token is None:
            raise CodecError(
                f"The chat template of {self.name!r} ends an assistant turn with {tail[:40]!r}, which holds no added "
                "token.",
                "Use a template that closes each turn with a special token.",
            )
        return found[0], token

    def _find_end(self, text: str, start: int) -> int:
        """Position in the rendered text at which the turn around `start` ends."""
        end = text.find(self.end_of_turn, start) if start >= 0 else -1
        if end < 0:
            raise CodecError(
                f"The chat template of {self.name!r} closes a turn with {self.end_of_turn!r}, but not this one: "
                f"{text[max(start, 0) :][:200]!r}.",
                "Use a template that writes every turn and closes each with the same token.",
            )
        return end

    def _token_id(self, text: str) -> int | None:
        token = self._backend.token_to_id(text)
        return None if token is None else int(token)


class _ParserTokenizer:
    """What a `renderers` tool parser needs from a tokenizer. It uses the Rust tokenizer directly, because the
    transformers wrapper sets truncation on each call, which is not thread-safe."""

    unk_token_id = None

    def __init__(self, codec: ChatCodec) -> None:
        self._codec = codec

    def convert_tokens_to_ids(self, token: str) -> int | None:
        return self._codec._token_id(token)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self._codec.decode(token_ids)


def _strings(value: Any) -> Iterator[str]:
    """Every string in nested lists and dicts, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value if isinstance(value, list) else (*value, *value.values()):
            yield from _strings(item)


def _user(content: str) -> ChatMessage:
    return {"role": "user", "content": content}


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
