"""Plays random conversations through a transcript and compares each prompt with the chat template's own rendering.

A policy that writes as its template does: its turns are read back, and the prompts must be the template's tokens. In
append mode they may differ by rewritten history alone: what follows the newest turn must still be the template's.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.parsed_turn import ChatMessage, ParsedTurn
from rollout_service.chat.transcript import History, Transcript
from rollout_service.errors import CodecError
from rollout_service.policy.base import Generation
from tests.families.conversations import TOOLS, Abilities, Writer

MARK = "\udfff"
"""Stands within control tokens that others wrote."""

IN_SUITE = range(200)
"""Seeds of the conversations that the test suite plays of each family, in each history mode: about 50 CPU seconds for
all families. `make families` plays 10,000, with the real vocabularies."""


@dataclass
class Report:
    """Counts of turns, of prompts by how they compare, and of what went wrong, with an example of each."""

    turns: int = 0
    same: int = 0
    rewritten: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def note(self, kind: str, example: Any) -> None:
        """Count something wrong."""
        self.wrong[kind] += 1
        self.examples.setdefault(kind, repr(example)[:600])


def abilities(codec: ChatCodec) -> Abilities:
    """What the codec's template can write, as its proof found."""
    impossible = codec.proof.impossible
    return Abilities(
        thinks=codec.supports_reasoning,
        always_thinks="a text turn without a thought" in impossible,
        several_calls="two tool calls in one turn" not in impossible,
        text_beside_calls="text beside calls" not in codec.proof.losses and "text beside a tool call" not in impossible,
    )


def play(codec: ChatCodec, seeds: range, histories: tuple[History, ...] = ("append", "template")) -> Report:
    """Play one conversation for each seed, in all history modes side by side."""
    report, can, tokens = Report(), abilities(codec), _Tokens(codec)
    for seed in seeds:
        _play_one(codec, seed, can, histories, report, tokens)
    return report


def _play_one(
    codec: ChatCodec, seed: int, can: Abilities, histories: tuple[History, ...], report: Report, tokens: _Tokens
) -> None:
    writer = Writer(seed, can)
    opening = writer.opening()
    transcripts = {history: Transcript(codec, TOOLS, history) for history in histories}
    seen: dict[History, list[int]] = {history: [] for history in histories}
    conversation, new = list(opening), opening

    def compare(*, is_last: bool = False) -> None:
        template = tokens.of(text := template_text(codec, conversation))
        if is_last:
            assert template == tokens.of_whole(text), "what was tokenized apart differs"
        for history, transcript in transcripts.items():
            prompt = transcript.prompt(new).tolist()
            _compare(codec, prompt, template, seen[history], history, seed, report)
            seen[history] = prompt

    for turn in writer.turns():
        compare()
        sampled = _sampled(codec, turn.message(), conversation, opening)
        if sampled is None:
            report.note("the template does not write a turn", (seed, turn))
            return
        written = (turn.content, turn.reasoning or "", repr(turn.calls), {"ok"} if turn.calls else set())
        for history, transcript in transcripts.items():
            read = transcript.record(generation(sampled))
            if _essence(read) != written:
                report.note("a turn is misread", (seed, turn, read))
                return  # what follows another turn than the one that was written tells nothing
            report.turns += 1
            seen[history] += sampled
        new = turn.answers()
        conversation += [read.as_message(), *new]
    compare(is_last=True)


def generation(token_ids: list[int]) -> Generation:
    """The tokens as an engine gives them."""
    count = len(token_ids)
    ids = np.asarray(token_ids, np.int32)
    return Generation(ids, np.full(count, -0.5, np.float32), np.zeros(count, np.int32), "stop")


def _sampled(
    codec: ChatCodec, message: ChatMessage, conversation: list[ChatMessage], opening: list[ChatMessage]
) -> list[int] | None:
    for before in (conversation, opening):
        try:
            return codec.encode_message(message, before, TOOLS)
        except CodecError:
            continue
    return None


def _essence(turn: ParsedTurn) -> Any:
    calls = [(call.name, call.arguments) for call in turn.calls]
    return str(turn.content), str(turn.reasoning or ""), repr(calls), {call.status for call in turn.calls}


def _compare(
    codec: ChatCodec,
    prompt: list[int],
    template: list[int],
    seen: list[int],
    history: History,
    seed: int,
    report: Report,
) -> None:
    """Compare a prompt with the template's rendering.

    Args:
        seen: the prompt before and what was sampled for it.
    """
    if prompt == template:
        report.same += 1
        return
    following = prompt[len(seen) :]
    if history == "append" and seen and following and template[-len(following) :] == following:
        report.rewritten += 1
        return
    at = next((i for i, (a, b) in enumerate(zip(prompt, template, strict=False)) if a != b), 0)
    shown = slice(max(0, at - 8), at + 12)
    report.note(f"{history}: a prompt differs", (seed, codec.decode(prompt[shown]), codec.decode(template[shown])))


def template_text(codec: ChatCodec, conversation: list[ChatMessage]) -> str:
    """The tokenizer's own rendering. Control tokens in what others wrote have a mark after their first letter, because
    the tokenizer would take them for control tokens."""
    template = codec.learned.template
    text: str = template.tokenizer.apply_chat_template(
        template.form.of(codec.control.shield(conversation)),
        tools=TOOLS,
        tokenize=False,
        add_generation_prompt=True,
        **codec.template_arguments,
    )
    return text


class _Tokens:
    """The tokenizer's own tokens of a conversation's renderings. Each has most of the one before in it, so a part that
    begins with a control token, where every tokenizer cuts, is tokenized once."""

    def __init__(self, codec: ChatCodec) -> None:
        self._tokenizer = codec.learned.template.tokenizer
        added = sorted(map(str, self._tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._before_control = re.compile(f"(?={'|'.join(map(re.escape, added))})")
        encode = functools.partial(self._tokenizer.encode, add_special_tokens=False)
        self._encode = functools.lru_cache(10_000)(encode)

    def of(self, text: str) -> list[int]:
        parts = (part for piece in text.split(MARK) for part in self._before_control.split(piece) if part)
        return [token for part in parts for token in self._encode(part)]

    def of_whole(self, text: str) -> list[int]:
        """The same, of the pieces between marks."""
        pieces = [self._tokenizer.encode(piece, add_special_tokens=False) for piece in text.split(MARK) if piece]
        return [token for piece in pieces for token in piece]
