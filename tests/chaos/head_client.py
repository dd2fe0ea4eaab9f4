"""The process that starts a service of its own, or finds it, and collects, in the trial of a lost head node:
`python -m tests.chaos.head_client ADDRESS FOLDER '{settings}'`. FOLDER is that of the Ray node which it belongs to.

Invariant: as in `tests.chaos.client`, each line of standard input is an order, and each line of standard output says
how one ended. It ends without a word, as a process that is killed does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray

from rollout_service.client import RolloutClient
from rollout_service.errors import RolloutError
from tests.chaos.client import take
from tests.chaos.schedule import Schedule
from tests.chaos.service import configured

_NODES = 2


def main() -> None:
    """Serve orders until standard input ends."""
    address, folder, settings = sys.argv[1:]
    config = configured(**json.loads(settings))
    ray.init(address, _temp_dir=folder, namespace=config.service.namespace, log_to_driver=False, logging_level="ERROR")
    while sum(node["Alive"] for node in ray.nodes()) < _NODES:
        time.sleep(0.2)
    client = RolloutClient("auto", config=config, start="detached")
    is_here = _node_of(client._coordinator) == ray.get_runtime_context().get_node_id()
    print(json.dumps({"coordinator is here": is_here}), flush=True)
    for line in sys.stdin:
        order, ended = json.loads(line), ""
        try:
            take(client, Schedule.from_json(order["schedule"]), Path(order["log"]))
        except RolloutError as error:
            ended = f"{type(error).__name__}: {error}"
        print(json.dumps({"ended": ended}), flush=True)
    os._exit(0)


def _node_of(actor: Any) -> str:
    return str(ray.get(actor.__ray_call__.remote(_own_node)))


def _own_node(actor: object) -> str:
    return str(ray.get_runtime_context().get_node_id())


if __name__ == "__main__":
    main()
