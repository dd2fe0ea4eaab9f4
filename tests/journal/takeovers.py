"""Owners that take one log over from each other, each through a path of its own, such as two mounts of one network file
system: `python -m tests.journal.takeovers FOLDER FOLDER [--seconds 30]`. Exit code 1 when a transaction was lost.

Invariant: a transaction whose commit returned is in the log for good, whoever owns the log later.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rollout_service.collecting.drawing import SamplerPosition
from rollout_service.journal.database import Overtaken
from rollout_service.journal.entries import Positioned
from rollout_service.journal.log import Log

_MOST_COMMITS = 30
"""Of one owner, before it takes the log over again."""

_REST_SECONDS = 0.02


@dataclass
class Owner:
    """One that takes the log over again and again."""

    folder: Path
    name: str
    said: list[str] = field(default_factory=list)
    """Names of the transactions whose commit returned."""
    seen: Counter[str] = field(default_factory=Counter)
    """How often it became the owner, was overtaken, and saw an error of the file system."""

    def work(self, goes_on: Callable[[], bool]) -> None:
        """Own the log, commit, and own it again."""
        order, number = random.Random(self.name), 0
        while goes_on():
            try:
                log = Log(self.folder)
                self.seen["owner"] += 1
                for _ in range(order.randrange(1, _MOST_COMMITS)):
                    number += 1
                    log.commit([Positioned(SamplerPosition(f"{self.name}-{number}", 0, 0))])
                    self.said.append(f"{self.name}-{number}")
                log.close()
            except (Overtaken, OSError) as error:  # a file may go while it is read, by the next owner's snapshot
                self.seen[type(error).__name__] += 1
            time.sleep(order.uniform(0.0, _REST_SECONDS))


def lost(folders: Sequence[Path], goes_on: Callable[[], bool]) -> tuple[list[str], list[Owner]]:
    """Have an owner for each path of the same folder. Returns the transactions that were lost, and the owners."""
    owners = [Owner(folder, f"owner {number}") for number, folder in enumerate(folders)]
    with ThreadPoolExecutor(len(owners)) as threads:
        list(threads.map(lambda owner: owner.work(goes_on), owners))
    last = Log(folders[0])
    found = {each.selection for each in last.recover().samplers}
    last.close()
    return [name for owner in owners for name in owner.said if name not in found], owners


def main() -> None:
    """Run as long as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.journal.takeovers", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="paths of one folder, in which the log is made")
    parser.add_argument("--seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    gone, owners = lost(arguments.folders, lambda: time.monotonic() < end)
    for owner in owners:
        print(f"{owner.folder}: {len(owner.said)} transactions; {dict(owner.seen)}")
    print(f"{len(gone)} lost: {gone[:10]}" if gone else "Nothing was lost.")
    sys.exit(bool(gone))


if __name__ == "__main__":
    main()
