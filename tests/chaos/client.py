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
from rollout_service.errors import RolloutError, ServiceError
from tests.chaos import history
from tests.chaos.schedule import Schedule
from tests.chaos.service import NAME, configured

_ACTORS_SECONDS, _WHOLE_SECONDS = 30.0, 150.0
"""How long the service may take to replace what was killed; an engine on a GPU takes a minute or two."""


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


class Unready(Exception):
    """The service is not as the last run found it, so no schedule can begin."""


def _wait_until_whole(client: RolloutClient) -> None:
    """Wait until what the last run's faults took is replaced, so that a schedule finds the same service every time. An
    actor whose start failed is started again when there is work, so actors are not waited for as long as replicas.

    Raises:
        Unready: no actor is there, or a replica is missing.
    """
    begun = time.monotonic()
    actors, replicas = client.config.service.actors, client.config.policy.replicas
    while (found := _there(client)) != (actors, replicas):
        waited = time.monotonic() - begun
        if found[0] and found[1] == replicas and waited > _ACTORS_SECONDS:
            return
        if waited > _WHOLE_SECONDS:
            raise Unready(f"actors and replicas are {found} in place of {(actors, replicas)}")
        time.sleep(0.2)


def _there(client: RolloutClient) -> tuple[int, int]:
    """Number of actors and of replicas that answer."""
    try:
        return client.status()["actors"], len(client.replicas())
    except ServiceError:  # no replica is left, or Serve's controller is on its way
        return 0, 0


def main() -> None:
    """Serve orders until standard input ends."""
    with RolloutClient(sys.argv[1], config=configured(service__name=NAME), start=False) as client:
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            ended, is_unready = "", False
            try:
                _wait_until_whole(client)
                take(client, Schedule.from_json(order["schedule"]), Path(order["log"]))
            except RolloutError as error:
                ended = f"{type(error).__name__}: {error}"
            except Unready as error:
                ended, is_unready = str(error), True
            print(json.dumps({"ended": ended, "unready": is_unready}), flush=True)


if __name__ == "__main__":
    main()
