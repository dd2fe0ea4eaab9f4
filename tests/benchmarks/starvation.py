"""Does the policy wait for us? 64 episodes in flight, a policy that takes 0.5 to 1.5 s a turn, a user that takes none.

The ideal is a service that takes no time: every episode always has a policy call in flight. In steady state, turns per
second are held against it; the added time of a call is what the episode waited beyond the policy's own latency.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from rollout_service.client import RolloutClient
from rollout_service.config import Latency
from rollout_service.record.trajectory import Trajectory
from rollout_service.tau2 import gold
from tests.benchmarks.measure import Row, show
from tests.support.episodes import settings

IN_FLIGHT = 64
LATENCY = {"distribution": "uniform", "mean": 1.0, "spread": 0.5}
_EPISODES = {"retail": 600, "airline": 800, "telecom": 800}
_WARM_UP = 8.0
"""Seconds at the start that do not count."""


@dataclass(frozen=True)
class Steady:
    """A service in steady state."""

    seconds: float
    """How long it was looked at."""
    rate: float
    """Turns per second."""
    ideal: float
    middle: float
    """Added to a policy call, milliseconds, median."""
    late: float
    """The same, 99th percentile."""


def run() -> bool:
    """Measure all domains."""
    rows: list[Row] = []
    for name, episodes in _EPISODES.items():
        rows += _rows(name, steady_state(name, episodes))
    return show(f"{IN_FLIGHT} episodes in flight, policy latency 0.5 to 1.5 s, steady state", rows)


def _rows(name: str, it: Steady) -> list[Row]:
    share = it.rate / it.ideal
    return [
        Row(
            f"{name}: turns per second over {it.seconds:.0f} s",
            f"{it.rate:.1f}",
            f"{it.ideal:.1f} ideal",
            f"{share:.3f}",
            "≥ 0.95",
            share >= 0.95,
        ),
        Row(f"{name}: added to a call, median", f"{it.middle:.1f} ms", "0 ms ideal", "", "≤ 10 ms", it.middle <= 10),
        Row(f"{name}: added to a call, p99", f"{it.late:.1f} ms", "0 ms ideal", "", "≤ 100 ms", it.late <= 100),
    ]


def steady_state(name: str, episodes: int, actors: int = 2, **overrides: Any) -> Steady:
    """Run that many episodes of a domain and look at the time when all slots were busy."""
    config = settings(
        tasks__domain=name,
        policy__script={"latency": LATENCY},
        service__actors=actors,
        service__slots=IN_FLIGHT // actors,
        service__max_buffered_groups=episodes,
        **overrides,
    )
    with RolloutClient(config=config) as client:
        while client.status()["actors"] < actors:
            time.sleep(0.2)
        return steady(client.collect(episodes, seed=0, progress=False))


def steady(batch: Iterable[Trajectory], warm_up: float = _WARM_UP) -> Steady:
    """The time of a collection when all slots were busy.

    Args:
        warm_up: seconds at the start that do not count.
    """
    batch = list(batch)
    calls = np.array([call for trajectory in batch for call in _calls(trajectory)])
    starts = [_time(trajectory, 0) for trajectory in batch]
    first, last = min(starts) + warm_up, max(starts)  # when the last has started, the number in flight sinks
    ended, latency, waited = calls[(first <= calls[:, 0]) & (calls[:, 0] <= last)].T
    middle, late = np.percentile((waited - latency) * 1e3, [50, 99])
    return Steady(last - first, len(ended) / (last - first), IN_FLIGHT / latency.mean(), middle, late)


def _calls(trajectory: Trajectory) -> list[tuple[float, float, float]]:
    """Of each turn: when it ended, how long the scripted policy took, how long the episode waited. All in seconds."""
    latency = Latency(**LATENCY)
    found = []
    for number, turn in enumerate(trajectory.turns):
        took = gold.waiting_time(latency, random.Random(f"latency:{trajectory.seed}:{number}"))
        assert turn.message_index is not None
        found.append((_time(trajectory, turn.message_index), took, turn.policy_seconds))
    return found


def _time(trajectory: Trajectory, message: int) -> float:
    return datetime.fromisoformat(trajectory.messages[message]["timestamp"]).timestamp()
