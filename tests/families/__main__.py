"""The matrix of model families: `python -m tests.families --conversations 10000` plays them all and prints a table.

`--write docs/models.md` puts the table between the two marks of that page. Each family has its own vocabulary where one
can be had, so the first run downloads some.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rollout_service.chat.codec import ChatCodec
from rollout_service.errors import CodecError
from tests.families.page import write_table
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

HEADER = (
    "| family | template arguments | calls read by | turns end with | greeting | history | cannot | turns | wrong |"
)


def row(name: str, arguments: dict[str, Any], count: int) -> tuple[str, bool]:
    """The table's row of a family, and whether anything went wrong."""
    given = f"`{json.dumps(arguments)}`" if arguments else ""
    try:
        codec = ChatCodec(real_tokenizer(name), name=name, template_arguments=arguments)
    except CodecError as error:
        return f"| {name} | {given} | refused: {error.problem[:200]} | | | | | | |", False
    report = play(codec, range(count))
    endings = dict.fromkeys((codec.closing.text.sampled, codec.closing.calls.sampled))
    cannot = [what for what in codec.proof.impossible if what != "a malformed call"]
    cannot += [f"loses {loss}" for loss in codec.proof.losses]
    cells = (
        name,
        given,
        codec.tool_parser,
        ", ".join(f"`{ending}`" for ending in endings).replace("|", "\\|"),
        codec.greeting.replace("_", " "),
        "rewritten" if codec.rewrites_history else "extended",
        "; ".join(cannot),
        f"{report.turns:,}",
        str(sum(report.wrong.values())),
    )
    for kind, example in report.examples.items():
        print(f"{name} {arguments}: {kind}: {example}", file=sys.stderr)
    return "| " + " | ".join(cells) + " |", bool(report.wrong)


def main() -> None:
    """Play, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="families; none: all")
    parser.add_argument("--conversations", type=int, default=10_000, help="for each family, in each history mode")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--write", type=Path, help="page that holds the table")
    options = parser.parse_args()
    if not families():
        sys.exit(f"The templates are not at {FOLDER}.")
    names = options.names or list(families())
    started = time.perf_counter()
    asked = [(name, arguments) for name in names for arguments in ({}, *ARGUMENTS.get(name, []))]
    rows, failed = [], False
    with ProcessPoolExecutor(options.jobs) as pool:
        made = [pool.submit(row, name, arguments, options.conversations) for name, arguments in asked]
        for future in made:
            line, wrong = future.result()
            print(line, flush=True)
            rows.append(line)
            failed |= wrong
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)
    if options.write:
        write_table(options.write, "matrix", HEADER, rows)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
