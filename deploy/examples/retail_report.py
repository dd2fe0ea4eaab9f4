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
"""What both splits are played after."""

SPLITS = {"test": "o", "train": "x"}
"""What is played, with its marks in the figure."""


def report(output: Path, domain: str = "retail") -> None:
    """Print two rows for each seed in the folder, one for each split, and draw DOMAIN.png: the mean reward of each
    step's episodes, and pass^1 with its interval. Of a run that is not finished, what it has so far."""
    runs = results.read(output, f"{domain}-*.json")
    title = "pass^1; the mean reward of GRPO's episodes in the first and the last quarter of the updates"
    table = Table("seed", "split", *PHASES, "reward", "updates", title=title)
    for run in runs:
        rewards = [step["reward"] for step in run["steps"]]
        quarter = max(1, len(rewards) // 4)
        first, last = (sum(part) / quarter for part in (rewards[:quarter], rewards[-quarter:]))
        reward = f"{first:.2f} → {last:.2f}" if rewards else "–"
        for split in SPLITS:
            rates = [_rate(run["evaluations"].get(phase, {}).get(split)) for phase in PHASES]
            table.add_row(str(run["seed"]), split, *rates, reward, str(len(rewards)))
    Console().print(table)
    axes = results.axes(7, 4)
    if axes is None:
        return
    for run in runs:
        numbers = range(1, len(run["steps"]) + 1)
        (drawn,) = axes.plot(numbers, [step["reward"] for step in run["steps"]], alpha=0.6, label=f"seed {run['seed']}")
        for place, phase in zip((-1, 0, len(run["steps"]) + 1), PHASES, strict=True):
            for split, mark in SPLITS.items():
                if (found := run["evaluations"].get(phase, {}).get(split)) is None:
                    continue
                value, (low, high) = found["pass_1"], found["interval"]
                bars = [[value - low], [high - value]]
                axes.errorbar([place], [value], bars, fmt=mark, capsize=3, color=drawn.get_color())
    axes.set(xlabel="weight update", ylabel="reward (line), pass^1: test o, train x", ylim=(-0.02, 1.02))
    axes.legend(loc="upper left")
    axes.figure.savefig(output / f"{domain}.png", dpi=80)


def _rate(found: dict[str, Any] | None) -> str:
    return "–" if found is None else "{:.2f}\n{:.2f}–{:.2f}".format(found["pass_1"], *found["interval"])


if __name__ == "__main__":
    typer.run(report)
