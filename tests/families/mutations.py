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
from pathlib import Path
from typing import Any

from rollout_service.chat.codec import ChatCodec
from rollout_service.errors import CodecError
from tests.families.pieces import run
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


def mutated(name: str, original: str, number: int, seed: int = 0) -> tuple[str, str]:
    """The family's mutation of that number: its kind, and the template, which differs from the original."""
    rng = random.Random(f"{seed}:{name}:{number}")
    while True:
        kind = rng.choice(list(MUTATIONS))
        template = MUTATIONS[kind](rng, original)
        if template is not None and template != original:
            return kind, template


def check(tokenizer: Any, template: str, conversations: int) -> tuple[str, Any]:
    """What became of a template: `refused`, `followed`, or `wrong` with examples."""
    tokenizer.chat_template = template
    try:
        codec = ChatCodec(tokenizer, name="mutated")
    except CodecError as error:
        return "refused", error.problem
    for first in range(0, conversations, 20):
        try:
            report = play(codec, range(first, min(first + 20, conversations)))
        except Exception as error:  # a mutated template raises what it likes
            return "wrong", {"a prompt cannot be made": f"{type(error).__name__}: {error}"}
        if report.wrong:
            return "wrong", report.examples
    return "followed", None


def piece(name: str, number: int, seed: int, conversations: int) -> dict[str, Any]:
    """What became of the family's mutation of that number."""
    original = str(small_tokenizer(name).chat_template)
    kind, template = mutated(name, original, number, seed)
    result, why = check(small_tokenizer(name), template, conversations)
    at = next((i for i, (a, b) in enumerate(zip(original, template, strict=False)) if a != b), len(template))
    return {"kind": kind, "at": template[max(0, at - 60) : at + 60], "result": result, "why": why}


def main() -> None:
    """Mutate, and print what was followed wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="families; none: all")
    parser.add_argument("--mutations", type=int, default=20, help="of each family's template")
    parser.add_argument("--conversations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument(
        "--resume", type=Path, help="file of results, made if missing; what stands there is not repeated"
    )
    options = parser.parse_args()
    if not families():
        sys.exit(f"The templates are not at {FOLDER}.")
    pieces = {
        f"{name} {number} seed {options.seed}, {options.conversations}":
            (name, number, options.seed, options.conversations)
        for number in range(options.mutations)
        for name in options.names or families()
    }  # fmt: skip
    results = run(piece, pieces, jobs=options.jobs, file=options.resume)
    for key, found in results.items():
        if found["result"] == "wrong":
            print(f"{key}: {found['kind']} at {found['at']!r}: {found['why']}")
    counts = Counter(found["result"] for found in results.values())
    print(dict(counts))
    sys.exit(int(counts["wrong"] > 0))


if __name__ == "__main__":
    main()
