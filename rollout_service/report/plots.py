"""Plots of a run: reward over weight versions or collections, pass^k with intervals, time split and staleness.

Invariant: a plot shows numbers that a table or the JSON has too, and nothing is told by colour alone. Matplotlib is an
optional dependency, and is imported when the first plot is drawn.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rollout_service.errors import ConfigError, StorageError
from rollout_service.report.history import Point
from rollout_service.report.run import Run
from rollout_service.report.tables import TIME_PARTS

REMEDY = "pip install 'tau2-rollout-service[plots]'"

_HATCHES = ("", "//", "..", "xx")
_MARKERS = "osD^vP*X"
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rollout-service",
    "font.size": 9.0,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # a dollar in a name is no formula
}


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_can_plot(what: str) -> None:
    """
    Raises:
        ConfigError: matplotlib is not installed, so there is no `what`.
    """
    if not can_plot():
        raise ConfigError(f"{what} needs matplotlib, which is not installed.", f"Install it: {REMEDY}")


def as_svg(run: Run) -> dict[str, str]:
    """The plots of which the run has numbers, as SVG elements for a page, by their titles."""
    return {title: _svg(figure) for _, title, figure in _drawn(run)}


def write_png(run: Run, folder: Path) -> list[Path]:
    """Write the plots of which the run has numbers into a folder, which is made if there is none.

    Returns:
        Their files.

    Raises:
        ConfigError: matplotlib is not installed.
        StorageError: a file cannot be written.
    """
    check_can_plot("A plot")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, _, figure in _drawn(run):
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], format="png", dpi=150)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}.", "Choose another folder.") from error
    return written


def _drawn(run: Run) -> Iterator[tuple[str, str, Any]]:
    """Name, title and figure of each plot."""
    import matplotlib
    from matplotlib.figure import Figure

    plots: list[tuple[str, str, bool, Callable[[Any, Run], None]]] = [
        ("pass_k", "pass^k, with 95% intervals over tasks", run.total.scored > 0, _pass_rates),
        ("reward_by_version", "Reward by weight version", len(run.history.versions) > 1, _versions),
        ("reward_by_collection", "Reward by collection", len(run.history.collections) > 1, _collections),
        ("time", "Where an episode's time goes", run.total.timing.episode_seconds > 0, _time),
        ("staleness", "Staleness, as far as the files show it", any(run.history.staleness), _staleness),
    ]
    for name, title, has_numbers, draw in plots:
        if has_numbers:
            with matplotlib.rc_context(_STYLE):
                figure = Figure(figsize=(6.4, 3.2), layout="constrained")
                axes = figure.subplots()
                axes.set_title(title)
                draw(axes, run)
                yield name, title, figure


def _svg(figure: Any) -> str:
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def _pass_rates(axes: Any, run: Run) -> None:
    domains = run.evaluation.domain_pass_rates
    for number, (name, rates) in enumerate(domains.items()):
        ks = [rate.k + 0.06 * (number - (len(domains) - 1) / 2) for rate in rates]
        values = [rate.value for rate in rates]
        errors = [[rate.value - rate.interval[0] for rate in rates], [rate.interval[1] - rate.value for rate in rates]]
        axes.errorbar(ks, values, errors, marker=_MARKERS[number % len(_MARKERS)], capsize=4, label=name)
    axes.set(xlabel="k", ylabel="pass^k", ylim=(-0.02, 1.02), xticks=range(1, run.evaluation.trials + 1))
    axes.legend()


def _points(axes: Any, points: Mapping[Any, Point], at: list[float]) -> None:
    means = [point.mean for point in points.values()]
    low, high = zip(*(point.interval for point in points.values()), strict=True)
    axes.fill_between(at, low, high, alpha=0.25, linewidth=0, label="95% interval")
    axes.plot(at, means, marker="o", markersize=3, label="mean reward")
    axes.set(ylabel="reward", ylim=(-0.02, 1.02))
    axes.legend()


def _versions(axes: Any, run: Run) -> None:
    points = {version: run.history.versions[version] for version in sorted(run.history.versions)}
    _points(axes, points, [float(version) for version in points])
    axes.set_xlabel("newest weight version that sampled for the episode")


def _collections(axes: Any, run: Run) -> None:
    _points(axes, run.history.collections, [float(n) for n in range(1, len(run.history.collections) + 1)])
    axes.set_xlabel("collection, in the order of the files")


def _time(axes: Any, run: Run) -> None:
    names = list(run.domains)
    left = [0.0] * len(names)
    for part, hatch in zip(TIME_PARTS, _HATCHES, strict=True):
        seconds = [getattr(each.timing, f"{part}_seconds") / each.episodes for each in run.domains.values()]
        axes.barh(names, seconds, left=left, hatch=hatch, edgecolor="white", label=part)
        left = [before + more for before, more in zip(left, seconds, strict=True)]
    axes.set(xlabel="seconds of an episode", ylim=(-0.6, len(names) - 0.1))
    axes.legend(ncols=len(TIME_PARTS), loc="upper right", fontsize="small")


def _staleness(axes: Any, run: Run) -> None:
    steps = sorted(run.history.staleness)
    axes.bar(steps, [run.history.staleness[each] for each in steps])
    axes.set(xlabel="versions behind the newest that had sampled", ylabel="episodes")
    axes.xaxis.get_major_locator().set_params(integer=True)
