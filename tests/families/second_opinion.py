"""SGLang's `function_call` parsers beside the codec: `python -m tests.families.second_opinion`.

Invariant: both read the same tokens with the same tools. First the turns that the codec writes, where the truth is
known; then the same turns with small damage, where the question is whether the codec reads what SGLang takes for well
formed. SGLang must be on the path: `PYTHONPATH=tests/support/sglang_cpu:.venv/sglang:.`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rollout_service.chat.codec import ChatCodec
from tests.families.conversations import TOOLS, Call, Writer
from tests.families.page import write_table
from tests.families.play import abilities
from tests.families.shared import FOLDER, families, small_tokenizer

PARSERS = {
    "qwen2.5": "qwen25",
    "qwen3-coder": "qwen3_coder",
    "qwen3.6": "qwen3_coder",
    "glm-4.6": "glm45",
    "gpt-oss": "gpt-oss",
    "llama-3.1": "llama3",
    "hermes-3": "hermes",
    "deepseek-v3.1": "deepseekv31",
    "kimi-k2": "kimi_k2",
    "minimax-m2": "minimax-m2",
    "mistral-small-3.2": "mistral",
    "devstral-2507": "mistral",
    "nemotron-3-nano": "qwen3_coder",
}
"""Families, and SGLang's name of the parser for each."""

ALIKE, MORE, FEWER, OTHER = KINDS = ("alike", "SGLang makes more calls", "SGLang makes fewer calls", "other arguments")
"""How two readings of a turn compare."""

SHOWN = 6
"""Examples of each kind that are printed."""

HEADER = f"| family | SGLang's parser | written turns | alike | damaged turns | {' | '.join(KINDS)} |"


@dataclass
class Opinion:
    """How the two readings of one family's turns compare."""

    written: Counter[str] = field(default_factory=Counter)
    damaged: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Values that SGLang reads otherwise than they were written."""
    misread: int = 0
    """Written turns that the codec misreads."""
    examples: dict[str, list[Any]] = field(default_factory=dict)


class Sglang:
    """One of SGLang's parsers."""

    def __init__(self, name: str) -> None:
        tool = importlib.import_module("sglang.srt.entrypoints.openai.protocol").Tool
        self._parser = importlib.import_module("sglang.srt.function_call.function_call_parser").FunctionCallParser
        self._tools = [tool(**schema) for schema in TOOLS]
        self._name = name

    def calls(self, text: str) -> list[Call]:
        """The calls of a turn's text, thoughts included; none where SGLang raises, or gives arguments that are no
        object."""
        text = f"<|start|>assistant{text}" if self._name == "gpt-oss" else text.rpartition("</think>")[2]
        try:
            _, found = self._parser(self._tools, self._name).parse_non_stream(text)
            made = [(str(call.name), json.loads(call.parameters)) for call in found]
        except Exception:
            return []
        return made if all(isinstance(arguments, dict) for _, arguments in made) else []


def compare(codec: ChatCodec, parser: str, conversations: int) -> Opinion:
    """Both readings of the turns with calls of these conversations, as they are written and damaged."""
    theirs, opinion, can = Sglang(parser), Opinion(), abilities(codec)
    for seed in range(conversations):
        writer = Writer(seed, can)
        for turn in writer.turns():
            if not turn.calls:
                continue
            ids = codec.encode_turn(turn.content, turn.calls, turn.reasoning)
            end = ids[-1:]
            ours, other = _calls(codec, ids), theirs.calls(_text(codec, ids, parser))
            opinion.misread += repr(ours) != repr(turn.calls)
            opinion.written[_kind(ours, other)] += 1
            opinion.reasons.update(_differences(turn.calls, other))
            for text in _damaged(writer.rng, codec.decode(ids[:-1])):
                ids = [*codec.encode_written(text), *end]
                ours, other = _calls(codec, ids), theirs.calls(_text(codec, ids, parser))
                kind = _kind(ours, other)
                opinion.damaged[kind] += 1
                if kind != ALIKE and len(opinion.examples.setdefault(kind, [])) < SHOWN:
                    opinion.examples[kind].append((text[-300:], ours, other))
    return opinion


def _text(codec: ChatCodec, ids: list[int], parser: str) -> str:
    return codec.decode(ids if parser == "gpt-oss" else ids[:-1])


def _calls(codec: ChatCodec, ids: list[int]) -> list[Call]:
    return [(call.name, call.arguments) for call in codec.parse(ids, TOOLS).calls if call.status == "ok"]


def _kind(ours: list[Call], theirs: list[Call]) -> str:
    if repr(ours) == repr(theirs):
        return ALIKE
    if len(ours) != len(theirs):
        return MORE if len(theirs) > len(ours) else FEWER
    return OTHER


def _differences(written: list[Call], read: list[Call]) -> Iterator[str]:
    """What SGLang makes of values that it reads otherwise."""
    if len(written) != len(read):
        yield f"{len(read)} of {len(written)} calls"
        return
    for (_, ours), (_, theirs) in zip(written, read, strict=True):
        for key in {*ours, *theirs}:
            if repr(ours.get(key)) != repr(theirs.get(key)):
                yield f"{key}: {ours.get(key)!r} as {theirs.get(key)!r}"


def _damaged(rng: random.Random, text: str) -> Iterator[str]:
    """The turn with small changes in its second half, where the calls are."""
    start = max(text.rfind("</think>"), 0)
    newlines = [at for at in range(start, len(text)) if text[at] == "\n"]
    if newlines:
        at = rng.choice(newlines)
        yield text[:at] + text[at + 1 :]
        yield text[:at] + "\n" + text[at:]
    at = rng.randrange(start, len(text))
    yield text[:at] + text[at + 1 :]
    yield text[:at] + " " + text[at:]
    yield text[:at]
    yield text + rng.choice(("\n", " Done.", "\n\n"))


def main() -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"families; none: {', '.join(PARSERS)}")
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--write", type=Path, help="page that holds the table")
    options = parser.parse_args()
    if not families():
        sys.exit(f"The templates are not at {FOLDER}.")
    logging.disable(logging.CRITICAL)  # SGLang logs every call that it cannot read
    rows, misread = [], 0
    for name in options.names or PARSERS:
        codec = ChatCodec(small_tokenizer(name), name=name)
        found = compare(codec, PARSERS[name], options.conversations)
        misread += found.misread
        damaged = [found.damaged[kind] for kind in KINDS]
        counts = found.written.total(), found.written[ALIKE], found.damaged.total(), *damaged
        rows.append(f"| {name} | {PARSERS[name]} | {' | '.join(f'{count:,}' for count in counts)} |")
        print(rows[-1], flush=True)
        print(f"{name}: the codec misreads {found.misread}, SGLang {found.reasons.most_common(12)}", file=sys.stderr)
        for kind, examples in found.examples.items():
            for text, ours, theirs in examples:
                print(f"  {kind}: {text!r}\n    codec {ours}\n    SGLang {theirs}", file=sys.stderr)
    if options.write:
        write_table(options.write, "second opinion", HEADER, rows)
    sys.exit(int(misread > 0))


if __name__ == "__main__":
    main()
