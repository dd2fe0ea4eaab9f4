"""`python -m tests.chaos --schedules 20 --episodes 500 --seed 0 [--only actor,replica]`: runs schedules of faults and
checks what was delivered. Exit code 1 when something was violated; then the logs are kept, and the command that repeats
the run is printed."""

from __future__ import annotations

import argparse
import logging
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.chaos import history
from tests.chaos.checker import lengths, same_distribution
from tests.chaos.lab import Lab
from tests.chaos.run import Result, Runner
from tests.chaos.schedule import KINDS, Schedule, make
from tests.chaos.user import UserEndpoint

KEPT = Path("chaos-violations")
"""Where the logs and schedules of runs with violations are kept."""


def main() -> None:
    """Run the schedules that the command line asks for."""
    arguments = _arguments()
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # killed processes leave connections half open
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as after Ctrl-C, what was seen by then is shown
    schedules = list(_schedules(arguments))
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, UserEndpoint() as user:
        folder = Path(name)
        lab = Lab(folder, user__base_url=user.url, service__journal=str(folder / "journal"))
        runner = Runner(lab, user, folder, arguments.patience)
        try:
            for number, schedule in enumerate(schedules, 1):
                results.append(runner.run(schedule))
                _tell(results[-1], number, len(schedules))
                if results[-1].verdict.violations:
                    _keep(runner, results[-1], lab.session)
        except KeyboardInterrupt:
            pass
        finally:
            _show(results, runner)
            lab.close()
    sys.exit(any(result.verdict.violations for result in results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Runs schedules of faults, and checks.")
    parser.add_argument("--schedules", type=int, default=20, help="how many; the kinds take turns")
    parser.add_argument("--episodes", type=int, default=500, help="episodes of each collection")
    parser.add_argument("--group-size", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    parser.add_argument("--only", default=",".join(KINDS), help=f"some of {','.join(KINDS)}")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds without a delivery: stuck")
    parser.add_argument("--repeat", type=Path, action="append", help="a schedule's file, in place of new schedules")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.only.split(",")) - set(KINDS))
    if unknown:
        parser.error(f"--only: there is no kind {', '.join(unknown)}; choose from {', '.join(KINDS)}")
    return arguments


def _schedules(arguments: argparse.Namespace) -> Iterator[Schedule]:
    if arguments.repeat:
        yield from (Schedule.from_json(path.read_text()) for path in arguments.repeat)
        return
    kinds = arguments.only.split(",")
    for number in range(arguments.schedules):
        seed, kind = divmod(number, len(kinds))
        yield make(kinds[kind], arguments.seed + seed, arguments.episodes, arguments.group_size)


def _tell(result: Result, number: int, total: int) -> None:
    verdict = result.verdict
    said = f"{verdict.delivered} delivered, {verdict.reported} reported, {result.injected} faults"
    name = f"{number}/{total} {time.strftime('%H:%M:%S')} {result.schedule.name}"
    print(f"{name}: {said}, {result.seconds:.0f} s", flush=True)
    for violation in verdict.violations[:10]:
        print(f"    {violation}", flush=True)


def _keep(runner: Runner, result: Result, session: str) -> None:
    schedule = result.schedule
    KEPT.mkdir(exist_ok=True)
    path = KEPT / f"{schedule.name}.json"
    path.write_text(schedule.to_json())
    shutil.copy(runner.log(schedule), KEPT / f"{schedule.name}.jsonl")
    (KEPT / f"{schedule.name}.txt").write_text("\n".join(map(str, result.verdict.violations)) + "\n")
    print(f"    Ray's logs: {session}/logs; the delivery log: {path}l")
    print(f'    repeat: make chaos ARGS="--repeat {path}"', flush=True)


def _show(results: Sequence[Result], runner: Runner) -> None:
    by_kind: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_kind[result.schedule.kind].append(result)
    columns = ("kind", "schedules", "faults", "asked", "delivered", "reported", "twice", "lost", "other reward")
    table = Table(
        *columns, "other violations", "KS p", "recovery: median", "most", "pause", title="Histories that were checked"
    )
    for kind, of_kind in by_kind.items():
        table.add_row(*_row(kind, of_kind, runner))
    Console(width=160).print(table)


def _row(kind: str, results: Sequence[Result], runner: Runner) -> list[str]:
    verdicts = [result.verdict for result in results]
    counts = {name: sum(v.count(name) for v in verdicts) for name in ("twice", "lost", "reward")}
    others = sum(len(verdict.violations) for verdict in verdicts) - sum(counts.values())
    came = [d for result in results for d in history.read(runner.log(result.schedule))]
    calm = [d for result in results for d in runner.calm(result.schedule)]
    recovery = [seconds for result in results for seconds in result.recovery]
    shown = [f"{statistics.median(recovery):.1f} s", f"{max(recovery):.1f} s"] if recovery else ["", ""]
    numbers = [
        len(results),
        sum(result.injected for result in results),
        sum(result.schedule.episodes for result in results),
        sum(verdict.delivered for verdict in verdicts),
        sum(verdict.reported for verdict in verdicts),
        *counts.values(),
        others,
    ]
    shown.append(f"{max(result.pause for result in results):.1f} s")
    return [kind, *map(str, numbers), f"{same_distribution(lengths(came), lengths(calm)):.3f}", *shown]


if __name__ == "__main__":
    main()
