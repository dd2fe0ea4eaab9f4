"""`python -m tests.chaos --schedules 20 --episodes 500 --seed 0 [--jobs 2] [--only actor,replica]`: runs schedules of
faults and checks what was delivered. Exit code 1 when something was violated, or could not be carried out.

Invariant: what is finished is in the results file at once. The same command goes on where it was ended."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos import real_engine
from tests.chaos.campaign import Campaign
from tests.chaos.results import Result, ResultsFile
from tests.chaos.schedule import KINDS, KINDS_OF_ENGINE, Schedule, make
from tests.chaos.table import show


def main() -> None:
    """Run the schedules that the command line asks for."""
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as after Ctrl-C, what was seen by then is shown
    schedules = list(_schedules(arguments))
    with contextlib.ExitStack() as stack:
        folder: Path = (arguments.results / arguments.engine).resolve()
        if arguments.repeat:  # a schedule that is repeated is carried out whatever was seen before
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        file = ResultsFile(folder / "results.jsonl")
        results = [] if arguments.repeat else file.of(schedules)
        finished = {result.schedule for result in results}
        if finished:
            print(f"{len(finished)} of {len(schedules)} are finished already, see {folder}.", flush=True)
        failed = 0
        before = real_engine.gpu_memory()
        with (
            contextlib.suppress(KeyboardInterrupt),
            Campaign(folder, arguments.jobs, str(arguments.patience), arguments.engine) as campaign,
        ):
            left = [schedule for schedule in schedules if schedule not in finished]
            for number, (schedule, result) in enumerate(campaign.run(left), len(finished) + 1):
                said = f"{number}/{len(schedules)} {time.strftime('%H:%M:%S')} {schedule.name}"
                if isinstance(result, str):
                    failed += 1
                    print(f"{said}: could not be carried out: {result[-500:]}", flush=True)
                    continue
                file.append(result)
                results.append(result)
                _tell(said, result)
                if result.violations:
                    _keep(folder, result)
        show(results, folder)
        is_free = real_engine.memory_is_free(before)
    violated = sum(bool(result.violations) for result in results)
    print(f"{len(results)} of {len(schedules)} carried out, {violated} with violations, {failed} could not be.")
    sys.exit(bool(violated or failed or not is_free))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Runs schedules of faults, and checks.")
    parser.add_argument("--schedules", type=int, default=20, help="how many; the kinds take turns")
    parser.add_argument("--episodes", type=int, default=500, help="episodes of each collection")
    parser.add_argument("--group-size", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule")
    parser.add_argument("--only", help=f"some of {','.join(KINDS)}")
    parser.add_argument("--engine", choices=KINDS_OF_ENGINE, default="scripted", help="sglang: the real one")
    parser.add_argument("--jobs", type=int, default=1, help="schedules at a time, each with a cluster of its own")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds without a delivery: stuck")
    parser.add_argument("--results", type=Path, default=Path("chaos-results"), help="folder of results and logs")
    parser.add_argument("--repeat", type=Path, action="append", help="a schedule's file, in place of new schedules")
    arguments = parser.parse_args()
    arguments.kinds = arguments.only.split(",") if arguments.only else KINDS_OF_ENGINE[arguments.engine]
    unknown = sorted(set(arguments.kinds) - set(KINDS))
    if unknown:
        parser.error(f"--only: there is no kind {', '.join(unknown)}; choose from {', '.join(KINDS)}")
    return arguments


def _schedules(arguments: argparse.Namespace) -> Iterator[Schedule]:
    if arguments.repeat:
        yield from (Schedule.from_json(path.read_text()) for path in arguments.repeat)
        return
    kinds = arguments.kinds
    for number in range(arguments.schedules):
        seed, kind = divmod(number, len(kinds))
        yield make(kinds[kind], arguments.seed + seed, arguments.episodes, arguments.group_size)


def _tell(said: str, result: Result) -> None:
    counts = f"{result.delivered} delivered, {result.reported} reported, {result.injected} faults"
    print(f"{said}: {counts}, {result.seconds:.0f} s", flush=True)
    for violation in result.violations[:10]:
        print(f"    {violation}", flush=True)


def _keep(folder: Path, result: Result) -> None:
    """Keep what explains a violation."""
    kept = Path("chaos-violations")
    kept.mkdir(exist_ok=True)
    path = kept / f"{result.schedule.name}.json"
    path.write_text(result.schedule.to_json())
    with contextlib.suppress(FileNotFoundError):  # nothing came
        shutil.move(folder / f"{result.schedule.name}.jsonl", path.with_suffix(".jsonl"))
    path.with_suffix(".txt").write_text("\n".join(map(str, result.violations)) + "\n")
    print(f"    Ray's logs: {result.session}/logs; the delivery log: {path}l", flush=True)
    print(f'    repeat: make chaos ARGS="--repeat {path}"', flush=True)


if __name__ == "__main__":
    main()
