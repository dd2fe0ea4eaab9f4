"""Retail episodes whose user takes its time: what a GPU makes of them, and how busy it is.

Real episodes of τ²-bench, but for the policy, whose weights are random: it calls no tool, so its turns are words for
the user. The user is a server in this process, over litellm, as one that others serve. A service for each number of
slots plays without a pause while the user's latency changes. After a change, nothing counts until as many episodes have
ended as there are slots.

`python -m tests.benchmarks user_latency`, on a GPU or, all tiny, on a CPU. With a GPU for each number of slots these
are measured at the same time. `random_policy.py` says what `BENCHMARK_ENGINE` and `BENCHMARK_MODEL` are.
`BENCHMARK_LATENCY` holds other numbers of this benchmark as JSON: `slots` (a list), `latencies` (means, in seconds; an
answer takes between half and one and a half of it), `turns` and `words` (means, see `talking_user.py`), `turn_tokens`
and `seconds` (for which each latency is measured).
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import ray
import torch
from rich.console import Console
from rich.table import Table

from rollout_service import RolloutClient, RolloutConfig
from rollout_service.record.trajectory import Trajectory
from tests.benchmarks import gpu_load, random_policy, side_by_side
from tests.benchmarks.random_policy import ON_GPU
from tests.benchmarks.talking_user import TalkingUser

NUMBERS: dict[str, Any] = (
    {"slots": [64, 128][: torch.cuda.device_count()], "latencies": [0, 1, 3], "seconds": 30}
    | {"turns": 6, "words": 40, "turn_tokens": 80}
    if ON_GPU
    else {"slots": [8], "latencies": [0, 1], "seconds": 10, "turns": 2, "words": 40, "turn_tokens": 16}
) | json.loads(os.environ.get("BENCHMARK_LATENCY", "{}"))
MOST_ACTORS = 8 if ON_GPU else 1
"""litellm takes some 10 ms of CPU for a request."""


@dataclass(frozen=True)
class Measured:
    """What a service did in a stretch of time, with one latency."""

    latency: float
    seconds: float
    turns: int
    """Turns of the policy that came in it."""
    ended: list[Trajectory]
    """Episodes that ended in it."""
    busy: str
    """Share of the time for which the replica's GPU was."""


def run() -> bool:
    """Measure all latencies and print the table. Whether no episode had a fault."""
    print(f"{NUMBERS}, model {random_policy.SHAPE}, {'GPU' if ON_GPU else 'CPU'}", flush=True)
    with tempfile.TemporaryDirectory() as folder, TalkingUser(NUMBERS["turns"], NUMBERS["words"]) as user:
        model = random_policy.make(Path(folder) / "model")
        ray.init("local", include_dashboard=False, log_to_driver=False, namespace="rollout_service")
        configs = {slots: _config(slots, model, user) for slots in NUMBERS["slots"]}
        found = side_by_side.measured(configs, lambda slots, client: _measured(slots, client, user))
        ray.shutdown()
    _show(found)
    return all(each.fault is None for rows in found.values() for row in rows for each in row.ended)


def _config(slots: int, model: str, user: TalkingUser) -> RolloutConfig:
    actors = side_by_side.actors(len(NUMBERS["slots"]), MOST_ACTORS)
    overrides: dict[str, Any] = {
        "service.name": f"latency-{slots}",
        "service.actors": actors,
        "service.slots": slots // actors,
        "service.max_buffered_groups": 10_000,
        "tasks.domain": "retail",
        "policy.engine": "sglang",
        "policy.model": model,
        "policy.sampling": {"max_new_tokens": NUMBERS["turn_tokens"], "ignore_eos": True},
    }
    overrides |= random_policy.engine("policy") | user.settings(f"latency-{slots}")
    return RolloutConfig.load(overrides=overrides, environ={})


def _measured(slots: int, client: RolloutClient, user: TalkingUser) -> list[Measured]:
    name, found = f"latency-{slots}", []
    gpus = gpu_load.gpus_of(f"{name}-policy")
    stream = client.stream(endless=True, seed=0)
    for latency in NUMBERS["latencies"]:
        user.seconds[name] = latency
        ended = [each for group in itertools.islice(stream, slots) for each in group]  # these do not count
        with gpu_load.measured() as busy:
            begun, counted = time.monotonic(), len(ended)
            while time.monotonic() < begun + NUMBERS["seconds"]:
                ended += next(stream)
            seconds = time.monotonic() - begun
        turns = user.turns_between(name, begun, begun + seconds)
        found.append(Measured(latency, seconds, turns, ended[counted:], gpu_load.shown(busy, gpus)))
        print(f"{slots} slots:", *map(" ".join, zip(_TITLES[1:], _row(found[-1]), strict=True)), sep=" ", flush=True)
    stream.close()
    return found


_TITLES = (
    "slots",
    "user's latency, s",
    "episodes/h",
    "output tokens/s",
    "prompt tokens cached",
    "GPU busy",
    "an episode, s",
    "of it the user, s",
    "turns",
    "context, tokens",
    "episodes",
    "measured, s",
)


def _row(it: Measured) -> list[str]:
    cached = sum(each.cached_token_count for each in it.ended) / sum(each.prompt_token_count for each in it.ended)
    return [
        f"{it.latency:g}",
        f"{len(it.ended) / it.seconds * 3600:,.0f}",
        f"{it.turns * NUMBERS['turn_tokens'] / it.seconds:,.0f}",
        f"{cached:.3f}",
        it.busy,
        f"{mean(each.timing.episode_seconds for each in it.ended):.1f}",
        f"{mean(each.timing.user_seconds for each in it.ended):.1f}",
        f"{mean(len(each.turns) for each in it.ended):.1f}",
        f"{mean(len(each.segments[0].token_ids) for each in it.ended):,.0f}",
        str(len(it.ended)),
        f"{it.seconds:.0f}",
    ]


def _show(found: dict[int, list[Measured]]) -> None:
    title = f"Retail episodes on one GPU for each service, turns of {NUMBERS['turn_tokens']} tokens"
    table = Table(*_TITLES, title=title)
    for slots, rows in found.items():
        for row in rows:
            table.add_row(str(slots), *_row(row))
    Console(width=150).print(table)
