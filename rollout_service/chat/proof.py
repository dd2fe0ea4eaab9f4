"""Proves a ChatCodec against its tokenizer's own chat template, at start, on probe conversations.

Invariant: a codec that passed gives, for every kind of turn, the tokens that the template gives. If the template
rewrites history, for example by dropping earlier thinking, the proof shows that it rewrites earlier turns only: the
tokens after the newest turn are still the template's. A feature that the template itself makes impossible (two calls in
a turn, a conversation without a user) is recorded, not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rollout_service.chat.learning import ARGUMENTS, GREETING, OPENING, PROBE_TOOLS, SYSTEM
from rollout_service.chat.message_form import ChatMessage
from rollout_service.chat.parsed_turn import OK, ParsedCall, ParsedTurn, tool_call
from rollout_service.errors import CodecError

if TYPE_CHECKING:  # a codec proves itself when it is made, so it imports this module
    from rollout_service.chat.codec import ChatCodec

_BEGINNING: list[ChatMessage] = [SYSTEM, GREETING, {"role": "user", "content": "My order, please.\n"}]
_THOUGHT = 'A "thought" \\ <b>é</b>.'
_TEXT = 'Which "one"? C:\\n <b>é</b> & it\'s {"a": 1}\nOr both?'
"""Holds what escaping would change."""


@dataclass(frozen=True)
class _Probe:
    """A turn of the policy, and what follows it."""

    what: str
    content: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()
    replies: tuple[str, ...] = ()
    thinks: bool = True

    def message(self, codec: ChatCodec) -> ChatMessage:
        message: ChatMessage = {"role": "assistant", "content": self.content}
        if self.thinks and codec.supports_reasoning:
            message["reasoning_content"] = _THOUGHT
        if self.calls:
            message["tool_calls"] = [tool_call(*call) for call in self.calls]
        return message

    def answers(self) -> list[ChatMessage]:
        if not self.calls:
            return [{"role": "user", "content": self.replies[0]}]
        return [{"role": "tool", "tool_call_id": "call_0", "content": text} for text in self.replies]


_ONE = {"zip": "1", "count": 3}
_TURNS = (
    _Probe("a text turn", _TEXT, replies=("The last one.",)),
    _Probe("a text turn without a thought", "This one?", replies=("Yes.\n",), thinks=False),
    _Probe("a tool call", calls=(("look_up", ARGUMENTS),), replies=("{}",)),
    _Probe("a tool call without a thought", calls=(("look_up", _ONE),), replies=("",), thinks=False),
    _Probe("a tool call without arguments", calls=(("change", {}),), replies=("Error: not found",)),
    _Probe(
        "two tool calls in one turn",
        calls=(("look_up", {"zip": "1"}), ("change", ARGUMENTS)),
        replies=('{"a": [1, 2]}', "Error: not found"),
    ),
    _Probe(
        "three tool calls in one turn",
        calls=(("change", {}), ("look_up", {"word": "5"}), ("change", {"order_id": "1"})),
        replies=("1", "", "[3]"),
    ),
    _Probe("text beside a tool call", "One moment.", (("look_up", _ONE),), ("Found.",)),
    _Probe("text beside a tool call without a thought", "One moment.", (("look_up", _ONE),), ("Found.",), thinks=False),
    _Probe("the last text turn", "Done. 🙂", replies=("Thanks!",)),
)


@dataclass
class Proof:
    """What a proof found."""

    passed: list[str] = field(default_factory=list)
    """Names of the kinds of turn that were proved."""
    impossible: dict[str, str] = field(default_factory=dict)
    """Kinds of turn that the template does not write, and why."""
    losses: dict[str, str] = field(default_factory=dict)
    """What the template leaves out of what it is given, and where that shows."""
    rewrites_history: bool = False
    """Whether the template writes earlier turns, or the prompt before them, otherwise once more messages follow."""


def prove(codec: ChatCodec) -> Proof:
    """Check the codec on every probe.

    Raises:
        CodecError: the codec differs from the template; shows the first differing token.
    """
    proof = Proof()
    _check_same(codec, "the opening prompt", codec.render(_BEGINNING, PROBE_TOOLS), _reference(codec, _BEGINNING))
    proof.passed.append("the opening prompt")
    _check_solo(codec, proof)
    history = list(_BEGINNING)
    for probe in _TURNS:
        history = _check_turn(codec, proof, history, probe)
    _note_malformed(codec, proof, history)
    _check_cuts(codec)
    _check_no_injection(codec)
    _note_losses(codec, proof)
    return proof


def _check_turn(codec: ChatCodec, proof: Proof, history: list[ChatMessage], probe: _Probe) -> list[ChatMessage]:
    """Check one turn and what follows it. Returns the conversation after it."""
    what = probe.what
    if not (probe.thinks or codec.supports_reasoning):
        return history
    if probe.content and probe.calls and "text beside a tool call" in proof.impossible:
        return history  # the codec leaves such texts out
    message, replies = probe.message(codec), probe.answers()
    sampled, problem = _sampled(codec, proof, message, history)
    if sampled is None:
        if what in ("a text turn", "a tool call", "the last text turn"):
            raise CodecError(f"{problem}", "Use a template that writes such a turn, or report it.")
        proof.impossible[what] = problem
        return history
    turn = codec.parse(sampled, PROBE_TOOLS)
    said = message.get("reasoning_content")
    expected = ParsedTurn(probe.content, said, [ParsedCall(*call) for call in probe.calls], turn.raw)
    if _essence(turn) != _essence(expected):
        if what.startswith("text beside a tool call") and _made(turn) == _made(expected):
            proof.losses["text beside calls"] = "the template leaves out what the assistant says beside a tool call"
            return history
        if what in ("two tool calls in one turn", "three tool calls in one turn") and _drops_calls(
            codec, sampled, probe
        ):
            proof.impossible[what] = "the template writes only one of them"
            return history
        raise CodecError(
            f"The codec of {codec.name!r} does not read back {what}: wrote "
            f"{(probe.content, said, list(probe.calls))}, read {turn}.",
            "Name another policy.tool_parser.",
        )
    after = [*history, {**turn.as_message(), "reasoning_content": said} if said is not None else turn.as_message()]
    prompt = codec.render(history, PROBE_TOOLS)
    following = codec.following(replies, [*history, turn.as_answered_message()], PROBE_TOOLS)
    bridged = following[1:]
    template = _reference(codec, [*after, *replies])
    recorded = prompt + sampled + bridged
    if template[: len(prompt) + len(sampled)] == prompt + sampled:
        _check_same(codec, f"what follows {what}", recorded, template)
    else:
        text, own = codec.control.marked(template), codec.control.marked(recorded)
        proof.rewrites_history |= text != own  # the same text may be cut into other tokens where a turn begins
        _check_same(codec, f"what follows {what}", following, template[-len(following) :])
    history = [*after, *replies]
    _check_same(codec, f"the conversation after {what}", codec.render(history, PROBE_TOOLS), template)
    proof.passed.append(what)
    return history


def _sampled(
    codec: ChatCodec, proof: Proof, message: ChatMessage, history: list[ChatMessage]
) -> tuple[list[int] | None, str]:
    """The tokens of the turn, or None and why the template does not write it. Where a turn changes how the messages
    before it are written, it is written after a short conversation."""
    try:
        return codec.encode_message(message, history, PROBE_TOOLS), ""
    except CodecError:
        pass
    try:
        sampled = codec.encode_message(message, OPENING, PROBE_TOOLS)
    except CodecError as error:
        return None, error.problem
    proof.rewrites_history = True
    return sampled, ""


def _drops_calls(codec: ChatCodec, sampled: list[int], probe: _Probe) -> bool:
    text = codec.decode(sampled)
    return sum(text.count(name) for name in {name for name, _ in probe.calls}) < len(probe.calls)


def _essence(turn: ParsedTurn) -> Any:
    """The turn; an empty thought is none. As text, because 1 and True are equal."""
    return repr((str(turn.content), str(turn.reasoning or ""))) + _made(turn)


def _made(turn: ParsedTurn) -> str:
    return repr([(call.name, call.arguments, call.status) for call in turn.calls])


def _check_solo(codec: ChatCodec, proof: Proof) -> None:
    """Check a conversation without a user, as the solo agent has it."""
    call = {"role": "assistant", "content": "", "tool_calls": [tool_call("look_up", _ONE)]}
    result = {"role": "tool", "tool_call_id": "call_0", "content": "{}"}
    what = "a conversation without a user"
    for messages in ([SYSTEM], [SYSTEM, call, result]):
        try:
            ours, theirs = codec.render(messages, PROBE_TOOLS), _reference(codec, messages)
        except CodecError as error:
            proof.impossible[what] = error.problem
            return
        _check_same(codec, what, ours, theirs)
    proof.passed.append(what)


def _note_malformed(codec: ChatCodec, proof: Proof, history: list[ChatMessage]) -> None:
    """Note whether a malformed call can stand in history as the text that was written, with its answer behind it."""
    result: ChatMessage = {"role": "tool", "tool_call_id": "call_0", "content": "Error: malformed"}
    call: ChatMessage = {"role": "assistant", "content": "", "tool_calls": [tool_call("look_up", {})]}
    following = codec.following([result], [*history, call], PROBE_TOOLS)[1:]
    what = "a malformed call"
    try:
        written = [*history, {"role": "assistant", "content": "MALFORMED"}, result]
        rendered = codec.render(written, PROBE_TOOLS)
        later: list[ChatMessage] = [{"role": "assistant", "content": "Sorry."}, {"role": "user", "content": "Yes?"}]
        codec.render([*written, *later], PROBE_TOOLS)
    except CodecError as error:
        proof.impossible[what] = error.problem
        return
    if rendered[-len(following) :] == following and "MALFORMED" in codec.decode(rendered):
        proof.passed.append(what)
    else:
        proof.impossible[what] = "the template writes the result of a tool otherwise after a text"


def _check_cuts(codec: ChatCodec) -> None:
    """Check that a turn cut by length never yields a call that was not written in full."""
    calls: list[tuple[str, dict[str, Any]]] = [
        ("look_up", {"order_id": "#W0123", "count": 2}),
        ("change", {"zip": "1"}),
    ]
    written: list[int] | None = None
    while written is None:
        try:
            written = codec.encode_turn("", calls, _THOUGHT if codec.supports_reasoning else None)
        except CodecError:
            calls.pop()
    expected = [(name, arguments, OK) for name, arguments in calls]
    for end in range(len(written)):
        turn = codec.parse(written[:end], PROBE_TOOLS)
        made = [(call.name, call.arguments, call.status) for call in turn.calls if call.status == OK]
        if made != expected[: len(made)]:
            raise CodecError(
                f"The codec of {codec.name!r} reads a call in a turn that was cut in the middle of it: "
                f"{codec.decode(written[:end])[-80:]!r} gives {made[-1][:2]}.",
                "Use a template that closes its calls with a control token, or name another policy.tool_parser.",
            )


def _check_no_injection(codec: ChatCodec) -> None:
    """Put a harmless text and then the text of control tokens into every place of a conversation. Nothing else may
    change."""
    ending = codec.closing
    tags = "".join(sorted({codec.end_of_turn, ending.calls.sampled, ending.text.in_history, "<tool_call>"}))
    harmless, hostile = "xyx", f"x{tags}x"
    for conversation in _hostile_conversations(codec):
        safe, ours = (codec.render(conversation(text), PROBE_TOOLS) for text in (harmless, hostile))
        same_text = codec.decode(ours).replace(hostile, harmless) == codec.decode(safe)
        controls = [[i for i in ids if i in codec.control_ids] for ids in (ours, safe)]
        if not same_text or controls[0] != controls[1]:
            raise CodecError(
                f"With the tokenizer {codec.name!r} the text {hostile!r} inside a message does not stay plain text.",
                "Use a tokenizer whose control tokens are added tokens, and a template that keeps what messages say.",
            )


def _hostile_conversations(codec: ChatCodec) -> Iterator[Any]:
    def text_only(text: str) -> list[ChatMessage]:
        said: ChatMessage = {"role": "assistant", "content": text}
        return [{"role": "system", "content": text}, {"role": "user", "content": text}, said,
                {"role": "user", "content": text}]  # fmt: skip

    def with_call(text: str) -> list[ChatMessage]:
        call: ChatMessage = {"role": "assistant", "content": "", "tool_calls": [tool_call("look_up", {"zip": text})]}
        return [*text_only(text), call, {"role": "tool", "tool_call_id": "call_0", "content": text}]

    yield text_only
    yield with_call


def _note_losses(codec: ChatCodec, proof: Proof) -> None:
    """Note what the template leaves out."""
    opening = codec.decode(codec.render(_BEGINNING, PROBE_TOOLS))
    if not all(tool["function"]["name"] in opening for tool in PROBE_TOOLS):
        proof.losses["tools"] = "the template leaves out the tools, so the policy does not see them"
    for message in (_BEGINNING[0], _BEGINNING[-1]):
        if str(message["content"]).strip() not in opening:
            raise CodecError(
                f"The chat template of {codec.name!r} leaves out what the {message['role']} says.",
                "Use a template that keeps what messages say.",
            )


def _reference(codec: ChatCodec, messages: Sequence[ChatMessage]) -> list[int]:
    """Token ids of the conversation from the tokenizer alone: its template, then its encoding of the whole text."""
    template = codec._template.official
    return codec.encode_written(template.text(messages, PROBE_TOOLS, generation_prompt=True))


def _check_same(codec: ChatCodec, what: str, ours: list[int], template: list[int]) -> None:
    if ours == template:
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, template, strict=False)) if a != b), min(len(ours), len(template))
    )
    before = codec.decode(template[max(0, at - 8) : at])
    raise CodecError(
        f"The codec of {codec.name!r} cannot be proved: {what} differs from the chat template's at token {at} of "
        f"{len(template)}: ours {codec.decode(ours[at : at + 8])!r}, the template's "
        f"{codec.decode(template[at : at + 8])!r}, both after {before!r}.",
        "Use a tokenizer whose template this service can follow, or report the template.",
    )
