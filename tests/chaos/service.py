"""The process that keeps the service, with a Ray cluster of its own: `python -m tests.chaos.service '{settings}'`.

Invariant: it prints one line of JSON with the cluster's address when the service is ready, and ends with everything it
started when its standard input ends. Clients are other processes.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ray

from rollout_service.client import RolloutClient
from rollout_service.config import RolloutConfig

NAME = "chaos"

SETTINGS: dict[str, Any] = {
    "service__name": NAME,
    "service__actors": 2,
    "service__slots": 8,
    "service__log_level": "INFO",
    "tasks__domain": "mock",
    "policy__replicas": 2,
    "user__model": "openai/local",
    "user__timeout_seconds": 4.0,
    "user__retries": 4,
    "user__max_retry_wait_seconds": 0.5,
    "limits__wall_seconds": 120.0,
}
"""The service of all schedules."""

SCRIPTED: dict[str, Any] = {
    "policy__script": {
        "latency": {"distribution": "exponential", "mean": 0.05},
        "wrong_argument": 0.1,
        "malformed_call": 0.05,
        "early_stop": 0.03,
        "chatter": 0.1,
    },
}
"""Its policy where no engine is named: it dawdles and errs, drawn from each episode's seed."""


_CPUS = 4
"""Of each cluster. Ray starts a worker for each CPU, and a machine with many of them runs many schedules at a time."""


def configured(**overrides: Any) -> RolloutConfig:
    """A configuration; `service__slots=8` sets service.slots. `tests.support.episodes` would import an engine and τ²,
    and clients are started again and again."""
    return RolloutConfig.load(overrides={k.replace("__", "."): v for k, v in overrides.items()}, environ={})


def main() -> None:
    """Keep a service until standard input ends."""
    config = configured(**json.loads(sys.argv[1]))
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init("local", num_cpus=_CPUS, namespace=config.service.namespace, **options)
    with RolloutClient(config=config):
        context = ray.get_runtime_context()
        ready = {"address": context.gcs_address, "session": f"/tmp/ray/{context.get_session_name()}"}
        print(json.dumps(ready), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
