"""The client's process: takes collections and writes the delivery log. `python -m tests.chaos.client ADDRESS`.

Invariant: what the log holds is not asked for again: a client that takes the place of one that was killed goes on with
the same collection. Each line of standard input is an order, each line of standard output says how one ended.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rollout_service.client import RolloutClient
from rollout_service.collecting.continuation import Continuation
from rollout_service.errors import RolloutError
from tests.chaos import history
from tests.chaos.schedule import Schedule
from tests.chaos.service import NAME
from tests.support.episodes import settings

_ACTORS_SECONDS = 30.0


def take(client: RolloutClient, schedule: Schedule, log: Path) -> None:
    """Collect what the schedule asks for and the log lacks, and write each group to the log as it comes.

    Raises:
        RolloutError: the service did not give everything.
    """
    history.repair(log)
    came = history.read(log)
    if len({delivery.identity for delivery in came}) == schedule.episodes:
        return
    done = tuple((delivery.group, delivery.sample, delivery.seed) for delivery in came)
    stream = client.stream(
        schedule.episodes,
        group_size=schedule.group_size,
        domain=dict(schedule.domains),
        split="base",
        seed=schedule.selection,
        continues=Continuation(0, came[0].collection, done) if came else None,
    )
    for group in stream:
        history.append(log, group)


def _wait_for_actors(client: RolloutClient) -> None:
    """Wait for the actors that the last run's faults took, so that a schedule finds the same service every time."""
    deadline = time.monotonic() + _ACTORS_SECONDS
    while client.status()["actors"] < (client.config.service.actors or 1) and time.monotonic() < deadline:
        time.sleep(0.1)


def main() -> None:
    """Serve orders until standard input ends."""
    with RolloutClient(sys.argv[1], config=settings(service__name=NAME), start=False) as client:
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            ended = ""
            try:
                _wait_for_actors(client)
                take(client, Schedule.from_json(order["schedule"]), Path(order["log"]))
            except RolloutError as error:
                ended = f"{type(error).__name__}: {error}"
            print(json.dumps({"ended": ended}), flush=True)


if __name__ == "__main__":
    main()
