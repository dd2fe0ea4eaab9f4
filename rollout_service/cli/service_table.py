"""What a service does, as a table for people: once, or again and again.

Invariant: every number comes from the service's status. Watching ends with Ctrl-C, and leaves the last table standing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from rollout_service.services import Parts

_WATCH_SECONDS = 2.0
"""Time between two looks."""

_MOST_TASKS = 5
"""Most tasks whose rate of the user's flaws the status shows."""


def service_table(found: Parts, report: dict[str, Any], address: str) -> Table:
    """The table of one service.

    Args:
        report: its status, see `services.report`.
        address: of the cluster, as the command was given it.
    """
    from rich.table import Table

    from rollout_service.cli.plain_text import plain

    table = Table(show_header=False, title=f"Service {found.name}")
    for key, text in _rows(found, report, address):
        table.add_row(plain(key), plain(text))
    return table


def watched(
    look: Callable[[], tuple[Parts, dict[str, Any]]], address: str, console: Console
) -> tuple[Parts, dict[str, Any]]:
    """Show the service's table again and again, until Ctrl-C. Returns what was seen last.

    Args:
        look: finds the service and its status.

    Raises:
        ServiceError: there is no such service, or not any more.
    """
    from rich.live import Live

    seen = look()
    with Live(service_table(*seen, address), console=console, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(_WATCH_SECONDS)
                seen = look()
                live.update(service_table(*seen, address), refresh=True)
        except KeyboardInterrupt:
            return seen


def at(address: str) -> str:
    """The option with which a further command finds the same cluster."""
    return "" if address == "auto" else f" --address {address}"


def ends(report: dict[str, Any]) -> str:
    """When the service ends."""
    if "owner" not in report:
        return "–"
    return "when it is stopped" if report["owner"] is None else f"with its client {report['owner']}"


def _rows(found: Parts, report: dict[str, Any], address: str) -> Iterator[tuple[str, str]]:
    yield "state", report["state"]
    yield "parts", str(found)
    if found.is_dead:
        yield "remedy", f"{found.stop_command}{at(address)}"
    if "owner" not in report:
        return
    yield "ends", ends(report)
    yield "environment actors", f"{report['actors']} ready, {report['lost_actors']} lost"
    if report["start_error"] is not None:
        yield "last failed start", report["start_error"]
    yield "slots", f"{report['running']} of {report['slots']} busy"
    mean = "" if report["mean_reward"] is None else f", mean reward {report['mean_reward']:.3f}"
    yield "episodes", f"{report['finished']} finished, {report['scored']} scored{mean}"
    for kind, count in report["faults"].items():
        yield f"faults: {kind}", f"{count}, the last one: {report['last_faults'][kind]}"
    for side, whose in (("user", "user's"), ("judge", "judge's"), ("review", "reviewer's")):
        if (it := report.get(f"{side}_endpoint")) is not None:
            said = f"{it['in_flight']} requests in flight of {it['limit']}, {it['waiting']} wait; {it['answered']} "
            yield f"{whose} endpoint", f"{said}answered, {it['refused']} refused or failed"
    yield from _flaws(report)
    yield "weight version", f"{report['weight_version']}{', paused' if report['paused'] else ''}"
    for client, silence in report["clients"].items():
        yield f"client {client}", f"heard {silence:.0f} s ago"
    for collection, progress in report["collections"].items():
        text = f"{progress['done']} of {progress['episodes']} episodes done; waits for {progress['waits_for']}"
        yield f"collection {collection}", text


def _flaws(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The rates of the user's flaws with their intervals: each flaw in all tasks, and any flaw in the worst ones."""
    from rollout_service.cli.flaw_report import rates

    for what in ("user_flaws", "user_reviews"):
        for name, (episodes, rate, interval) in rates(report[what]):
            yield f"{what.replace('_', ' ')}: {name}", f"{episodes} episodes, {rate} ({interval})"
    for task, counts in list(report["user_flaws_by_task"].items())[:_MOST_TASKS]:
        (_, (episodes, rate, interval)), *_ = rates(counts)
        yield f"user flaws in {task}", f"{episodes} episodes, {rate} ({interval})"
