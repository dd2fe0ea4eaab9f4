"""Mutated chat templates: each must be refused, or followed without a wrong token.

`python -m tests.families.mutations --mutations 20 --conversations 300` mutates every family's template, and prints each
mutation that was accepted and then followed wrongly.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from rollout_service.chat.codec import ChatCodec
from rollout_service.errors import CodecError
from tests.families.play import play
from tests.families.shared import FOLDER, families, small_tokenizer

Mutation = Callable[[random.Random, str], str | None]


def _one(pattern: str, replacement: str | Callable[[re.Match[str]], str]) -> Mutation:
    """A mutation that replaces one place where the pattern stands."""

    def mutate(rng: random.Random, template: str) -> str | None:
        found = list(re.finditer(pattern, template))
        if not found:
            return None
        place = rng.choice(found)
        new = replacement(place) if callable(replacement) else replacement
        return template[: place.start()] + new + template[place.end() :]

    return mutate


_ROLES = {"user": "assistant", "assistant": "user", "tool": "user", "system": "user"}

MUTATIONS: dict[str, Mutation] = {
    "drops a newline": _one(r"\\n", ""),
    "doubles a newline": _one(r"\\n", r"\\n\\n".replace("\\\\", "\\")),
    "swaps a role": _one(r"\b(user|assistant|tool|system)\b", lambda found: _ROLES[found[0]]),
    "escapes once more": _one(r"\|\s*tojson\b", "| tojson | tojson"),
    "escapes a text": _one(r"\bmessage\.content\b|\bcontent\b(?= *[-}~+])", "(content | tojson)"),
    "counts messages": _one(r"<\|im_start\|>|<\|user\|>|\[INST\]|<\|start\|>|\]~b\]|<｜User｜>",
                            lambda found: found[0] + "' ~ loop.index ~ '"),
    "forgets a condition": _one(r"\bloop\.last\b|\bnot loop\.first\b|\bloop\.first\b", "true"),
    "drops a control token": _one(r"<[|｜][^<>'\"{}]+[|｜]>|</?tool_\w+>|</?think>|\[/?[A-Z_]{4,}\]", ""),
    "trims": _one(r"\bcontent\b(?= *[-}~+])", "(content | trim)"),
    "shortens": _one(r"\bcontent\b(?= *[-}~+])", "(content | truncate(12, true, ''))"),
    "drops a piece": _one(r"\{\{-?[^{}]*-?\}\}", ""),
    "inverts": _one(r"\{%-? if (?!not )", lambda found: found[0] + "not "),
    "takes a call's place": _one(r"\bloop\.index0\b", "(loop.index0 + 1)"),
}  # fmt: skip


def check(tokenizer: Any, template: str, conversations: int) -> tuple[str, Any]:
    """What became of a template: `refused`, `followed`, or `wrong` with examples."""
    tokenizer.chat_template = template
    try:
        codec = ChatCodec(tokenizer, name="mutated")
    except CodecError as error:
        return "refused", error.problem
    try:
        report = play(codec, range(conversations))
    except CodecError as error:
        return "wrong", {"a prompt cannot be made": error.problem}
    return ("wrong", report.examples) if report.wrong else ("followed", None)


def main() -> None:
    """Mutate, and print what was followed wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="families; none: all")
    parser.add_argument("--mutations", type=int, default=20, help="of each family's template")
    parser.add_argument("--conversations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not families():
        sys.exit(f"The templates are not at {FOLDER}.")
    counts: Counter[str] = Counter()
    for name in options.names or families():
        rng = random.Random(f"{options.seed}:{name}")
        original = str(small_tokenizer(name).chat_template)
        for _ in range(options.mutations):
            kind = rng.choice(list(MUTATIONS))
            mutated = MUTATIONS[kind](rng, original)
            if mutated is None or mutated == original:
                continue
            result, why = check(small_tokenizer(name), mutated, options.conversations)
            counts[result] += 1
            if result == "wrong":
                at = next(i for i, (a, b) in enumerate(zip(original, mutated, strict=False)) if a != b)
                print(f"{name}, {kind} at {mutated[max(0, at - 60) : at + 60]!r}: {why}", flush=True)
    print(dict(counts))
    sys.exit(int(counts["wrong"] > 0))


if __name__ == "__main__":
    main()
