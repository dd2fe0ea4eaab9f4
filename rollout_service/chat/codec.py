"""ChatCodec: turns chat messages into context tokens, and policy tokens into a message.

Invariant: the tokens are those that the tokenizer's own chat template gives. The codec learns everything from that
template's renderings: the form of messages that it takes, how a turn closes, how calls are written, and what follows a
turn of the conversation at hand. Nothing is known of any model family. `prove()` checks all of it on probe
conversations before the first episode. A template that cannot be proved is refused, and the error says what failed.

Text inside a message never becomes a control token: `<|im_end|>` in a tool result is encoded as ten plain characters.
Only a control token that the policy itself sampled stays one.
"""

from __future__ import annotations

import functools
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rollout_service.chat.control_tokens import CUT, POINT, ControlTokens, plain
from rollout_service.chat.learning import OPENING, PROBE_CONVERSATIONS, PROBE_TOOLS, learn
from rollout_service.chat.message_form import ChatMessage
from rollout_service.chat.parsed_turn import ParsedTurn, tool_call
from rollout_service.chat.proof import Proof, prove
from rollout_service.chat.template import ChatTemplate, ToolSchema
from rollout_service.chat.template_date import today
from rollout_service.chat.text_cache import TextCache
from rollout_service.chat.tokenizer_files import EMBEDDED_TOKENIZER, fingerprint, load_tokenizer
from rollout_service.config.policy import PolicyConfig
from rollout_service.errors import CodecError

__all__ = ["EMBEDDED_TOKENIZER", "ChatCodec"]

_CACHE_BYTES = 32 << 20
"""Size of the cache of texts and their tokens. A domain's system prompt takes 50 to 150 KB."""


class ChatCodec:
    """Encodes and parses turns with one tokenizer. Thread-safe: it keeps no state of a conversation."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str = "",
        tool_parser: str = "auto",
        template_arguments: Mapping[str, Any] | None = None,
        date: str | None = None,
    ) -> None:
        """Learn the tokenizer's chat template, and prove what was learned.

        Args:
            tokenizer: a fast Hugging Face tokenizer (`PreTrainedTokenizerFast`) with a chat template.
            name: the tokenizer's name in trajectories.
            tool_parser: what reads tool calls: `learned`, `harmony`, or the name of a `renderers` parser; `auto`: the
                first one that reads back what the template writes.
            template_arguments: what the template is given beside the messages and tools, such as `enable_thinking`.
            date: what the template writes where it asks for today's date, as 2026-01-31. None: today's.

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
        self._tokenizer, self._backend = tokenizer, backend
        backend.no_truncation()
        backend.no_padding()
        self._encode_plain = TextCache(self._encode_uncached, _CACHE_BYTES)
        self.control = ControlTokens(backend, str(tokenizer.chat_template))
        self.template_arguments = dict(template_arguments or {})
        self.tokenizer_fingerprint = fingerprint(backend.to_str())
        self.template_fingerprint = fingerprint(str(tokenizer.chat_template))
        self.tokenizer_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        """One past the largest id. The model's output layer may have more rows, and not every id below has a token."""
        template = ChatTemplate(tokenizer, self.name, self.template_arguments, date=date or today())
        self.learned = learned = learn(template, backend, self.control, self.decode, tool_parser)
        """What was learned of the template."""
        self.date = learned.template.date_written(PROBE_CONVERSATIONS, PROBE_TOOLS, asked=date)
        """The date in the prompts, as 2026-01-31; empty: there is none."""
        self._template = learned.template.made_faster(PROBE_CONVERSATIONS, PROBE_TOOLS)
        self._reader, self.closing, self.supports_reasoning = learned.reader, learned.closing, learned.thinks
        """Whether the template has a place for thoughts."""
        self.end_of_turn = self.closing.text.sampled
        """Text of the control token that ends a turn without calls."""
        self.end_of_turn_id = self.control.id(self.end_of_turn)
        self._split = self._splitting_tokens()
        own, eos = {self.end_of_turn_id, self.control.id(self.closing.calls.sampled)}, tokenizer.eos_token_id
        self.stop_token_ids = sorted(own | ({eos} if eos is not None else set()))
        self.turn_end_ids = self._turn_ends()
        """Ids that may end a turn: the stop tokens, and special tokens that occur nowhere else in a turn."""
        self.proof = Proof()
        self.proof = prove(self)
        """What the proof found."""

    @property
    def rewrites_history(self) -> bool:
        """Whether the template writes earlier turns otherwise than they were sampled."""
        return self.proof.rewrites_history

    @property
    def control_ids(self) -> frozenset[int]:
        """Ids of all added tokens. Text inside a message never becomes one of them."""
        return self.control.ids

    @property
    def tool_parser(self) -> str:
        """What reads tool calls: `learned`, `harmony`, or the name of a `renderers` parser."""
        return str(self._reader.name)

    @property
    def takes_answers_to_text(self) -> bool:
        """Whether the template renders the result of a tool after a turn that is text: a malformed call."""
        return "a malformed call" not in self.proof.impossible

    @property
    def greeting(self) -> str:
        """`kept`, or `left_out` where the template has no place for an assistant that speaks first."""
        return self._template.form.greeting

    @classmethod
    def load(
        cls,
        path: str | None = None,
        *,
        tool_parser: str = "auto",
        template_arguments: Mapping[str, Any] | None = None,
        date: str | None = None,
    ) -> ChatCodec:
        """Load a tokenizer from a folder, or by a hub name that `transformers` can find. None: the embedded one.

        Raises:
            CodecError: no tokenizer can be loaded from there, or the codec cannot be proved.
        """
        tokenizer, source = load_tokenizer(path)
        return cls(
            tokenizer,
            name="embedded" if path is None else source,
            tool_parser=tool_parser,
            template_arguments=template_arguments,
            date=date,
        )

    @classmethod
    def of(cls, policy: PolicyConfig) -> ChatCodec:
        """The codec that the settings ask for.

        Raises:
            CodecError: the tokenizer cannot be loaded, or the codec cannot be proved.
        """
        name, arguments = policy.tokenizer_name, policy.template_arguments
        return cls.load(name, tool_parser=policy.tool_parser, template_arguments=arguments, date=policy.date)

    # Context ---------------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema] = ()) -> list[int]:
        """Token ids of the whole conversation, up to where the policy's next turn starts."""
        return self.prompt(messages, tools).tolist()

    def prompt(self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema] = ()) -> array[int]:
        """As `render`, but an array of C integers. A list of a long prompt's tokens takes longer to make than them."""
        messages = self.writable(messages)
        try:
            text = self._text(self.control.shield(messages), tools, generation_prompt=True)
        except CodecError:  # a template may refuse control tokens in what the policy wrote
            text = self._text(self.control.shield(plain(messages)), tools, generation_prompt=True)
        return self._encode(text)

    def writable(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """The messages, without texts beside calls where the template refuses them."""
        if "text beside a tool call" not in self.proof.impossible:
            return list(messages)
        return [{**message, "content": ""} if message.get("tool_calls") else message for message in messages]

    def following(
        self, new_messages: Sequence[ChatMessage], before: Sequence[ChatMessage], tools: Sequence[ToolSchema]
    ) -> list[int]:
        """Token ids of what follows the newest turn's own text: the token that ends the turn, as it stands in history,
        and `new_messages`, up to where the policy's next turn starts.

        Args:
            before: the conversation up to and with the turn. Malformed calls stand in it as calls that were answered.

        Raises:
            CodecError: the template cannot render the conversation, or does not close the turn.
        """
        *history, turn = before
        return self.after(self.shielded(history), turn, self.shielded(new_messages), tools)

    def shielded(self, messages: Sequence[ChatMessage]) -> list[ChatMessage]:
        """The messages as `after` takes them: without control tokens, also in what the policy sampled."""
        shielded: list[ChatMessage] = self.control.shield(plain(self.writable(messages)))
        return shielded

    def after(
        self,
        history: Sequence[ChatMessage],
        turn: ChatMessage,
        new_messages: Sequence[ChatMessage],
        tools: Sequence[ToolSchema],
    ) -> list[int]:
        """As `following`, with the messages before and after the turn shielded. A conversation that goes on shields
        each of its messages once."""
        has_calls = bool(turn.get("tool_calls"))
        conversation = [*history, self._with_point(turn), *new_messages]
        text = self._text(conversation, tools, generation_prompt=True)
        point = text.find(POINT)
        end = self.closing.end(text, point, has_calls) if point >= 0 else None
        if end is None:
            raise CodecError(
                f"The chat template of {self.name!r} closes a turn with {self.end_of_turn!r}, but not this one: "
                f"{text[max(point, 0) :][:200]!r}.",
                "Use a template that writes every turn and closes each with the same token.",
            )
        ending = self.closing.of(has_calls)
        rest = self._encode(text[end:].replace(POINT, "")).tolist()
        return [self.control.id(ending.in_history), *rest] if ending.own else rest

    def unsampled(self, following: Sequence[int], last_token: int) -> Sequence[int]:
        """The part of `following` that the policy did not sample: its first token stands for the one that ended the
        turn. A turn that was cut by length has none.

        Args:
            last_token: the last one that the policy sampled.
        """
        ends = {following[0], self.end_of_turn_id, self.control.id(self.closing.calls.sampled)}
        return following[1:] if last_token in ends and self._ended_by(last_token, following[0]) else following

    def _ended_by(self, last_token: int, closing: int) -> bool:
        """Whether the token may stand in the place of `closing`. One that opens the next message stands for itself."""
        return self.closing.text.own or last_token == closing

    def _with_point(self, turn: ChatMessage) -> ChatMessage:
        """The turn with `POINT` in what stands last in it. What follows a turn depends on its calls' names and ids
        only, so its texts are left out."""
        calls = turn.get("tool_calls")
        if not calls:
            return {"role": "assistant", "content": f"x{POINT}x"}
        named = [tool_call(self.control.shield(c["function"]["name"]), {}, c.get("id", "call_0")) for c in calls]
        last = named[-1]["function"]
        last["name"] = f"{last['name'][:1]}{POINT}{last['name'][1:]}"
        return {"role": "assistant", "content": "", "tool_calls": named}

    def encode_turn(
        self, content: str = "", calls: Sequence[tuple[str, dict[str, Any]]] = (), reasoning: str | None = None
    ) -> list[int]:
        """Token ids that a policy would sample to write this turn, including the token that ends it.

        Args:
            calls: name and arguments of each tool call.
            reasoning: left out if the template has no place for it.

        Raises:
            CodecError: the template does not write such a turn.
        """
        message: ChatMessage = {"role": "assistant", "content": content}
        if reasoning is not None:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [tool_call(name, arguments) for name, arguments in calls]
        return self.encode_message(message, OPENING, PROBE_TOOLS)

    def encode_message(
        self, message: ChatMessage, before: Sequence[ChatMessage], tools: Sequence[ToolSchema]
    ) -> list[int]:
        """Token ids that a policy would sample to write the message at this place of a conversation.

        Raises:
            CodecError: the template writes the turn otherwise than its prompt begins.
        """
        shielded = self.control.shield([*before, message])
        text = self._text(shielded, tools)
        prompt = self._turn_opening if before is OPENING else self._text(shielded[:-1], tools, generation_prompt=True)
        if not text.startswith(prompt):
            raise CodecError(
                f"The chat template of {self.name!r} writes a turn differently from how its generation prompt opens "
                f"it: {text[len(prompt) - 30 : len(prompt) + 50]!r} does not start with {prompt[-80:]!r}.",
                "Use a template whose generation prompt is the start of its assistant turn.",
            )
        ending = self.closing.of(bool(message.get("tool_calls")))
        body = text[len(prompt) :]
        if ending.own:
            end = body.rfind(ending.sampled)
            if end < 0:
                raise CodecError(
                    f"The chat template of {self.name!r} closes a turn with {ending.sampled!r}, but not this one: "
                    f"{body[:200]!r}.",
                    "Use a template that writes every turn and closes each with the same token.",
                )
            body = body[:end]
        return [*self._encode(body), self.control.id(ending.sampled)]

    @functools.cached_property
    def _turn_opening(self) -> str:
        return self._text(OPENING, PROBE_TOOLS, generation_prompt=True)

    def encode_written(self, text: str) -> list[int]:
        """Token ids of text that a policy writes: the text of a control token becomes that token."""
        return self._tokens(text)

    # Turns -----------------------------------------------------------------------------------------------------------

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSchema] = ()) -> ParsedTurn:
        """Parse the tokens that the policy sampled. Never raises: a malformed call is marked as such.

        Args:
            tools: give the types of arguments, where the format writes them without quotes.
        """
        ids = list(token_ids)
        if ids and ids[-1] in self.turn_end_ids:
            ids.pop()
        return self._reader.read(ids, tools)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, including control tokens. An id that has no token gives no text."""
        # The batch method releases the interpreter's lock.
        return str(self._backend.decode_batch([list(token_ids)], skip_special_tokens=False)[0]) if token_ids else ""

    def unknown_ids(self, token_ids: Iterable[int]) -> list[int]:
        """The ids for which the tokenizer has no token."""
        return [i for i in token_ids if not 0 <= i < self.tokenizer_size or self._backend.id_to_token(i) is None]

    # Rendering -------------------------------------------------------------------------------------------------------

    def _text(
        self, messages: Sequence[ChatMessage], tools: Sequence[ToolSchema] = (), *, generation_prompt: bool = False
    ) -> str:
        return self._template.text(messages, tools, generation_prompt=generation_prompt)

    def _encode(self, text: str) -> array[int]:
        """Token ids of a shielded text. It is split at the tokens that end turns, because the pieces come again."""
        ids = array("i")
        for piece in text.split(CUT):
            for number, part in enumerate(self._split.split(piece)):
                if number % 2:
                    ids.append(self.control.id(part))
                elif part:
                    ids.extend(self._encode_plain(part))
        return ids

    def _splitting_tokens(self) -> re.Pattern[str]:
        endings = (self.closing.text, self.closing.calls)
        tokens = {token for ending in endings for token in (ending.sampled, ending.in_history)}
        return re.compile(f"({'|'.join(map(re.escape, tokens & self.control.plain_edges)) or '(?!)'})")

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

    def _turn_ends(self) -> frozenset[int]:
        written: set[int] = set()
        for content, calls in (("A text.", ()), ("", (("look_up", {"order_id": "#W0123"}),))):
            for reasoning in ("A thought.", None):
                try:
                    written.update(self.encode_turn(content, calls, reasoning)[:-1])
                except CodecError:
                    continue  # the template writes no such turn; the proof says which it must write
        return self.control.special_ids.difference(written).union(self.stop_token_ids)
