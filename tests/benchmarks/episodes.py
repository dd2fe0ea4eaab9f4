"""Whole scripted episodes: the service, tokens, Ray and Serve included, against τ²'s own loop with the same sides."""

from __future__ import annotations

import time
from typing import Any

from rollout_service.client import RolloutClient
from rollout_service.tau2 import compat, environment, evaluation, tasks
from tests.benchmarks.measure import Row, family_cpu_seconds, show
from tests.parity import play
from tests.support.episodes import settings

_TARGETS = {"retail": 10.0, "airline": 10.0, "telecom": 1 / 3}
"""How many times cheaper in CPU time; telecom, whose database is small: at most three times dearer."""

_EPISODES = 600


def run() -> bool:
    """Measure all domains."""
    rows = []
    for name, target in _TARGETS.items():
        own = own_loop(name)
        ours, rate = _service(name)
        ratio = own / ours
        shown = f"≥ {target:g}×" if target >= 1 else f"≥ 1/{1 / target:g}"
        rows.append(
            Row(
                f"{name}: CPU per episode ({rate:.0f} episodes/s)",
                f"{ours * 1e3:.1f} ms",
                f"{own * 1e3:.1f} ms",
                f"{ratio:.1f}×",
                shown,
                ratio >= target,
            )
        )
    return show("Whole episodes, all processes of the service counted", rows)


def own_loop(name: str) -> float:
    """CPU seconds of an episode in τ²'s own loop: construction, conversation, evaluation."""
    references = tasks.references(name)[:40]

    def episode(task: compat.Task) -> Any:
        orchestrator = play(environment.make(name), task, task)
        return evaluation.evaluate(orchestrator.get_trajectory(), task, name, orchestrator.termination_reason.value)

    episode(tasks.get(references[0]))
    start = time.process_time()
    rewards = [episode(tasks.get(reference)).reward for reference in references]
    seconds = (time.process_time() - start) / len(references)
    assert set(rewards) == {1.0}
    return seconds


def _service(name: str) -> tuple[float, float]:
    """CPU seconds of an episode over all processes of an embedded service, and episodes per second."""
    config = settings(tasks__domain=name, service__max_buffered_groups=_EPISODES)
    with RolloutClient(config=config) as client:
        client.collect(64, seed=1, progress=False)
        cpu, wall = family_cpu_seconds(), time.perf_counter()
        batch = client.collect(_EPISODES, seed=0, progress=False)
        cpu, wall = family_cpu_seconds() - cpu, time.perf_counter() - wall
    assert {trajectory.reward for trajectory in batch} == {1.0}
    return cpu / _EPISODES, _EPISODES / wall
