"""Results: what the examples write, read and draw.

Invariant: a run's file is a whole JSON document. A folder holds the runs of several seeds, each in a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rollout_service.record.trajectory import Trajectory


def read(output: Path, pattern: str) -> list[dict[str, Any]]:
    """The runs in the folder, by the names of their files."""
    return [json.loads(path.read_text()) for path in sorted(output.glob(pattern))]


def write(path: Path, run: dict[str, Any]) -> None:
    """Write a run's file whole, so that a run that is killed leaves what it had."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(run, indent=1))
    partial.replace(path)


def axes(width: float, height: float) -> Any:
    """The axes of a new figure of this size, in inches; None: matplotlib is not installed, which is said."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        print("For the plot: pip install -c constraints.txt '.[examples]'")
        return None
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def mean_reward(trajectories: Iterable[Trajectory]) -> float:
    """Mean reward of the episodes that have one."""
    return float(np.mean([t.reward for t in trajectories if t.reward is not None]))


def show(values: dict[str, Any]) -> None:
    """Print a line of a run's figures."""
    texts = (f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
    print(", ".join(texts), flush=True)
