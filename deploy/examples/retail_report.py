"""The report of `deploy.examples.retail`: a table and a figure, also of runs that are under way or were killed.

    python -m deploy.examples.retail_report learned

Invariant: it reads the results in the folder, and changes none of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from deploy.examples import results

PHASES = ("before", "imitation", "grpo")
"""What the test split is played after."""


def report(output: Path, domain: str = "retail") -> None:
    """Print a row for each seed in the folder, and draw DOMAIN.png: the train tasks' mean reward at each step, and
    pass^1 on the test tasks with its interval. Of a run that is not finished, what it has so far."""
    runs = results.read(output, f"{domain}-*.json")
    title = "pass^1 on the test split; the train tasks' mean reward in the first and the last quarter"
    table = Table("seed", *PHASES, "train reward", "updates", "seconds", title=title)
    for run in runs:
        rewards = [step["reward"] for step in run["steps"]]
        quarter = max(1, len(rewards) // 4)
        first, last = (sum(part) / quarter for part in (rewards[:quarter], rewards[-quarter:]))
        table.add_row(
            str(run["seed"]),
            *(_rate(run["evaluations"].get(phase)) for phase in PHASES),
            f"{first:.2f} → {last:.2f}" if rewards else "–",
            str(len(rewards)),
            f"{run['seconds']:.0f}",
        )
    Console().print(table)
    axes = results.axes(7, 4)
    if axes is None:
        return
    for run in runs:
        numbers = range(1, len(run["steps"]) + 1)
        (drawn,) = axes.plot(numbers, [step["reward"] for step in run["steps"]], alpha=0.6, label=f"seed {run['seed']}")
        for place, phase in zip((-1, 0, len(run["steps"]) + 1), PHASES, strict=True):
            if (found := run["evaluations"].get(phase)) is not None:
                value, (low, high) = found["pass_1"], found["interval"]
                bars = [[value - low], [high - value]]
                axes.errorbar([place], [value], bars, fmt="o", capsize=3, color=drawn.get_color())
    axes.set(xlabel="weight update", ylabel="train reward (line), test pass^1 (points)", ylim=(-0.02, 1.02))
    axes.legend(loc="upper left")
    axes.figure.savefig(output / f"{domain}.png", dpi=80)


def _rate(found: dict[str, Any] | None) -> str:
    return "–" if found is None else "{:.2f}\n{:.2f}–{:.2f}".format(found["pass_1"], *found["interval"])


if __name__ == "__main__":
    typer.run(report)
