"""The matrix of model families: `python -m tests.families.matrix` plays them all and prints a table.

`--write docs/models.md` puts the table between the two marks of that page, and `--resume FILE` goes on where a run was
cut off. Each family has its own vocabulary where one
can be had, so the first run downloads some.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollout_service.chat.codec import ChatCodec
from rollout_service.errors import CodecError
from tests.families.page import write_table
from tests.families.pieces import run
from tests.families.play import play
from tests.families.shared import FOLDER, families, real_tokenizer

ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "qwen3-hybrid": [{"enable_thinking": False}],
    "qwen3.5-4b": [{"enable_thinking": False}],
    "qwen3.6": [{"preserve_thinking": True}],
    "glm-4.5": [{"enable_thinking": False}],
    "glm-4.6": [{"enable_thinking": False}],
    "gpt-oss": [{"reasoning_effort": "high"}],
    "llama-3.1": [{"tools_in_user_message": False}],
    "llama-3.2": [{"tools_in_user_message": False}],
    "deepseek-v3.1": [{"thinking": True}],
    "nemotron-3-nano": [{"truncate_history_thinking": False}],
}
"""Template arguments that make a difference, tried beside none."""

PIECE = 500
"""Conversations that a process plays at a time."""

HEADER = (
    "| family | template arguments | calls read by | turns end with | greeting | history | cannot | turns | wrong |"
)


@functools.lru_cache(maxsize=1)
def _codec(name: str, arguments: str) -> ChatCodec:
    return ChatCodec(real_tokenizer(name), name=name, template_arguments=json.loads(arguments))


def piece(name: str, arguments: str, first: int, end: int) -> dict[str, Any]:
    """Plays the conversations of these seeds: what was learned of the family, and what went wrong."""
    try:
        codec = _codec(name, arguments)
    except CodecError as error:
        return {"refused": error.problem}
    report = play(codec, range(first, end))
    endings = dict.fromkeys((codec.closing.text.sampled, codec.closing.calls.sampled))
    cannot = [what for what in codec.proof.impossible if what != "a malformed call"]
    cannot += [f"loses {loss}" for loss in codec.proof.losses]
    learned = (
        codec.tool_parser,
        ", ".join(f"`{ending}`" for ending in endings).replace("|", "\\|"),
        codec.greeting.replace("_", " "),
        "rewritten" if codec.rewrites_history else "extended",
        "; ".join(cannot),
    )
    return {"learned": learned, "turns": report.turns, "wrong": dict(report.wrong), "examples": report.examples}


def row(name: str, arguments: str, results: Sequence[dict[str, Any]]) -> tuple[str, bool]:
    """The table's row of a family, from its pieces, and whether anything went wrong."""
    given = "" if arguments == "{}" else f"`{arguments}`"
    if "refused" in results[0]:
        return f"| {name} | {given} | refused: {results[0]['refused'][:200]} | | | | | | |", False
    turns = sum(result["turns"] for result in results)
    wrong = sum(sum(result["wrong"].values()) for result in results)
    for result in results:
        for kind, example in result["examples"].items():
            print(f"{name} {arguments}: {kind}: {example}", file=sys.stderr)
    return "| " + " | ".join((name, given, *results[0]["learned"], f"{turns:,}", str(wrong))) + " |", wrong > 0


def main() -> None:
    """Play, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="families; none: all")
    parser.add_argument("--conversations", type=int, default=10_000, help="for each family, in each history mode")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument(
        "--resume", type=Path, help="file of results, made if missing; what stands there is not repeated"
    )
    parser.add_argument("--write", type=Path, help="page that holds the table")
    options = parser.parse_args()
    if not families():
        sys.exit(f"The templates are not at {FOLDER}.")
    names, count = options.names or list(families()), options.conversations
    asked = [(name, json.dumps(given)) for name in names for given in ({}, *ARGUMENTS.get(name, []))]
    pieces = {
        f"{name} {given} {first}-{min(first + PIECE, count)}": (name, given, first, min(first + PIECE, count))
        for name, given in asked
        for first in range(0, count, PIECE)
    }
    results = run(piece, pieces, jobs=options.jobs, file=options.resume)
    made = [row(name, given, [results[key] for key in pieces if pieces[key][:2] == (name, given)])
            for name, given in asked]  # fmt: skip
    rows = [line for line, _ in made]
    print("\n".join(rows))
    if options.write:
        write_table(options.write, "matrix", HEADER, rows)
    sys.exit(int(any(wrong for _, wrong in made)))


if __name__ == "__main__":
    main()
