"""Prompts of long conversations and the parsing of turns, in CPU time, against the bare template and tokenizer."""

from __future__ import annotations

import statistics
from typing import Any

from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.parsed_turn import ChatMessage
from rollout_service.chat.tokenizer_files import load_tokenizer
from rollout_service.chat.transcript import History, Transcript
from rollout_service.tau2 import domain
from tests.benchmarks.measure import Row, cpu_seconds, show
from tests.families.conversations import Writer
from tests.families.play import abilities, generation
from tests.families.shared import families, small_tokenizer

_FAMILIES = ("qwen3-hybrid", "qwen3-coder", "glm-4.5", "gpt-oss", "kimi-k2", "llama-3.1")
"""Measured where their templates lie beside the checkout."""

_LENGTH, _LAST = 60, 50
"""Messages of a conversation. The prompts of those from `_LAST` on are measured."""

_CONVERSATIONS = 3
_PROMPT_MS, _PARSE_MS = 4.0, 1.0


def run() -> bool:
    """Measure the embedded tokenizer, and some families' templates with it."""
    rows = [*_rows("embedded", load_tokenizer(None)[0])]
    for name in _FAMILIES:
        if name in families():
            rows += _rows(name, small_tokenizer(name))
    return show(f"Codec, retail's tools, conversations of {_LENGTH} messages", rows)


def _rows(name: str, tokenizer: Any) -> list[Row]:
    codec = ChatCodec(tokenizer, name=name)
    rows: list[Row] = []
    parsed: list[tuple[float, float]] = []
    histories: tuple[History, ...] = ("append", "template")
    for history in histories:
        prompts: list[tuple[float, float]] = []
        for seed in range(_CONVERSATIONS):
            _play(codec, history, seed, prompts, parsed)
        rows.append(_row(f"{name}: prompt, {history}", prompts, _PROMPT_MS))
    return [*rows, _row(f"{name}: parsing a turn, against decoding it", parsed, _PARSE_MS)]


def _row(what: str, found: list[tuple[float, float]], most: float) -> Row:
    ours, bare = (1e3 * statistics.mean(times) for times in zip(*found, strict=True))
    return Row(what, f"{ours:.2f} ms", f"{bare:.2f} ms", f"{bare / ours:.1f}×", f"≤ {most:g} ms", ours <= most)


def _play(
    codec: ChatCodec,
    history: History,
    seed: int,
    prompts: list[tuple[float, float]],
    parsed: list[tuple[float, float]],
) -> None:
    """Play a conversation. Adds seconds of its last prompts and turns, each with those of the baseline."""
    shared = domain.get("retail")
    tools, writer = shared.tool_schemas(False), Writer(seed, abilities(codec))
    new: list[ChatMessage] = [
        {"role": "system", "content": shared.environment().get_policy()},
        {"role": "user", "content": "Hello."},
    ]
    conversation: list[ChatMessage] = []
    transcript = Transcript(codec, tools, history)
    while len(conversation) < _LENGTH:
        conversation += new
        ours = cpu_seconds(lambda new=new: transcript.prompt(new), 1)
        turn = writer._turn()
        sampled = codec.encode_turn(turn.content, turn.calls, turn.reasoning)
        if len(conversation) >= _LAST:
            prompts.append((ours, cpu_seconds(lambda all_=conversation: _bare(codec, all_, tools), 1)))
            parsing = cpu_seconds(lambda sampled=sampled: codec.parse(sampled, tools), 3)
            parsed.append((parsing, cpu_seconds(lambda sampled=sampled: codec.decode(sampled), 3)))
        conversation.append(transcript.record(generation(sampled)).as_message())
        new = turn.answers()


def _bare(codec: ChatCodec, conversation: list[ChatMessage], tools: list[dict[str, Any]]) -> None:
    """What a caller does who renders and encodes the whole conversation for each turn."""
    template = codec.learned.template
    template.tokenizer.apply_chat_template(template.form.of(conversation), tools=tools, add_generation_prompt=True)
