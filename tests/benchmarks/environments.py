"""One episode's environment and one evaluation, against the official ones: CPU time and memory."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

from rollout_service.config import Evaluation
from rollout_service.tau2 import domain, environment, evaluation, tasks
from tests.benchmarks.measure import Row, cpu_seconds, show
from tests.parity import play

GROUP = 8
"""Attempts at each task, as in training: what is constant for a task is computed for the first of them."""

_TARGETS = {"retail": (5.0, 20.0), "airline": (5.0, 20.0), "telecom": (1.0, 1.0)}
"""Construction and evaluation: how many times cheaper."""


def run() -> bool:
    """Measure all domains."""
    rows: list[Row] = []
    for name, (construction, evaluating) in _TARGETS.items():
        shared = domain.get(name)
        ours, official = cpu_seconds(shared.environment, 300), cpu_seconds(lambda name=name: environment.make(name), 8)
        rows.append(_row(f"{name}: environment, CPU", ours, official, construction, "ms", 1e3))
        ours, official = memory(shared.environment, 100), memory(lambda name=name: environment.make(name), 4)
        rows.append(_row(f"{name}: environment, memory", ours, official, construction, "KiB", 1 / 1024))
        ours, official = _evaluation(name)
        rows.append(_row(f"{name}: evaluation, CPU", ours, official, evaluating, "ms", 1e3))
    return show("Environment and evaluation, per episode", rows)


def _row(what: str, ours: float, official: float, target: float, unit: str, scale: float) -> Row:
    ratio = official / ours
    shown = [f"{value * scale:,.2f} {unit}" for value in (ours, official)]
    return Row(what, *shown, f"{ratio:.1f}×", f"≥ {target:g}×", ratio >= target)


def memory(make: Callable[[], Any], count: int) -> float:
    """Bytes that one of `count` things keeps."""
    make()
    gc.collect()
    tracemalloc.start()
    kept = [make() for _ in range(count)]
    size = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    del kept
    return size


def _evaluation(name: str) -> tuple[float, float]:
    """CPU seconds of a fast and of an official evaluation, mean over the domain's first tasks. The fast one includes
    looking at the end state, of which the trajectory's record keeps the hashes, and the gold actions, once a group."""
    shared = domain.get(name)
    ours = official = 0.0
    references = tasks.references(name)[:25]
    for reference in references:
        task = tasks.get(reference)
        orchestrator = play(shared.environment(), task, task)
        messages, reason = orchestrator.get_trajectory(), orchestrator.termination_reason.value

        def score(
            orchestrator: Any = orchestrator, messages: Any = messages, task: Any = task, reason: str = reason
        ) -> None:
            end = shared.end_state(orchestrator.environment)
            scored = evaluation.score(orchestrator, end, messages, task, shared, reason, Evaluation())
            assert (scored.evaluator, scored.reward_info.reward) == ("fast", 1.0)

        ours += cpu_seconds(score, GROUP)
        official += cpu_seconds(lambda m=messages, t=task, r=reason: evaluation.evaluate(m, t, name, r), 1)
    return ours / len(references), official / len(references)
