"""TaskAudit: what a task's reward says about a policy that does nothing, anything, or exactly the right thing.

Invariant: every reward comes from the official evaluator, for a conversation that really took place between the
official parts. The judge of NL assertions is never asked: its part of a reward is left out, and the task is marked.
Every task of a split gets a row, also one that cannot be scored.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from rollout_service.config.script import Script
from rollout_service.errors import TaskError
from rollout_service.task_ref import TaskRef

RANDOM_CALLS = 5
"""Tool calls of the random policy in each task."""

_COMPARED = ("content_hash", "parts", "nothing", "gold", "writes")
"""Fields in which a task of two distributions may differ. The random policy's reward says nothing of the task."""


@dataclass(slots=True)
class TaskAudit:
    """One task."""

    domain: str
    split: str
    task_id: str
    content_hash: str
    """Hash of what the task asks for and of how it is scored, see `tasks.content_hash`."""
    parts: list[str] = field(default_factory=list)
    """The parts of its reward, as τ² names them."""
    binds: list[str] = field(default_factory=list)
    """Those of them that fail when the policy does nothing."""
    judged: bool = False
    """Whether a judge takes part in its reward. The rewards below then leave the judge's part out."""
    writes: bool | None = None
    """Whether the gold actions change a database."""
    nothing: float | None = None
    """Reward of a policy that says goodbye at once. None: not scored."""
    random: float | None = None
    """Reward of a policy that makes random calls and says goodbye."""
    gold: float | None = None
    """Reward of the gold actions."""
    problem: str = ""
    """Why a reward is missing; empty: none is."""


def audit_tasks(references: Iterable[TaskRef], *, seed: int = 0, jobs: int = 1) -> Iterator[TaskAudit]:
    """Audit each task, in the given order.

    Args:
        seed: of the random policy.
        jobs: number of processes. Each one imports τ²-bench, which takes seconds and 300 MB.
    """
    if jobs == 1:
        yield from (audit_task(reference, seed) for reference in references)
        return
    # Neighbours share a domain, and a process parses each of its domains once.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(audit_task, references, itertools.repeat(seed), chunksize=8)


def audit_task(reference: TaskRef, seed: int = 0) -> TaskAudit:
    """Audit one task.

    Raises:
        TaskError: there is no such task.
    """
    from rollout_service.tau2 import domain, enactment, fast_evaluation, gold, random_calls, tasks

    task = tasks.get(reference)
    shared = domain.get(reference.domain)
    parts = enactment.reward_parts(task)
    found = TaskAudit(reference.domain, reference.split, reference.task_id, tasks.content_hash(task), parts)
    if task.evaluation_criteria is None:
        found.problem = "it has no evaluation criteria, so τ² rewards every conversation"
        return found
    found.judged = "NL_ASSERTION" in parts
    if parts == ["NL_ASSERTION"]:
        found.problem = "only a judge decides its reward"
        return found
    begun = shared.end_state(fast_evaluation.play_gold(shared.original(task=task), task, actions=False)).hashes
    found.writes = begun != fast_evaluation.gold_hashes(shared, task)
    played = {
        "nothing": [gold.Step(gold.SAY, gold.GOODBYE)],
        "random": random_calls.random_steps(shared, RANDOM_CALLS, f"{seed}:{reference.domain}:{reference.task_id}"),
        "gold": gold.policy_steps(task, "llm", Script(), random.Random(seed)),
    }
    for name, steps in played.items():
        try:
            info = enactment.enact(task, shared, steps, user_acts=name == "gold").reward_info
        except Exception as error:  # a task that cannot be scored must not hide the others
            found.problem = f"{name}: {error}"
            continue
        setattr(found, name, float(info.reward))
        if name == "nothing":
            found.binds = [str(part.value) for part, reward in (info.reward_breakdown or {}).items() if reward < 1]
    return found


def summary(audits: Iterable[TaskAudit]) -> dict[str, dict[str, Any]]:
    """Counts by domain: tasks, those that write, are judged, and give reward 1 for each of the three policies, and how
    many tasks each part of the reward binds in."""
    counts: dict[str, dict[str, Any]] = {}
    for domain, found in itertools.groupby(audits, key=lambda audit: audit.domain):
        rows = list(found)
        counts[domain] = {
            "tasks": len(rows),
            "write": sum(bool(row.writes) for row in rows),
            "judged": sum(row.judged for row in rows),
            "nothing": sum(row.nothing == 1 for row in rows),
            "random": sum(row.random == 1 for row in rows),
            "gold": sum(row.gold == 1 for row in rows),
            "binds": dict(sorted(Counter(part for row in rows for part in row.binds).items())),
            "problems": sum(bool(row.problem) for row in rows),
        }
    return counts


def report(audits: list[TaskAudit]) -> dict[str, Any]:
    """The audit as JSON values, with the τ²-bench that was audited."""
    from rollout_service.tau2 import compat

    return {
        "distribution": compat.DISTRIBUTION,
        "version": compat.VERSION,
        "domains": summary(audits),
        "tasks": [dataclasses.asdict(audit) for audit in audits],
    }


def differences(ours: Mapping[str, Any], theirs: Any) -> list[tuple[str, str, list[str]]]:
    """How two reports differ: domain, task id, and the fields that differ, or where the task is missing.

    Args:
        theirs: another distribution's `report`, as read from JSON. Only domains that both have are compared.

    Raises:
        TaskError: `theirs` is no report.
    """
    try:
        tables = [{(row["domain"], row["task_id"]): row for row in each["tasks"]} for each in (ours, theirs)]
        names = [f"{each['distribution']} {each['version']}" for each in (ours, theirs)]
        shared = set(ours["domains"]) & set(theirs["domains"])
        both = [key for key in dict.fromkeys([*tables[0], *tables[1]]) if key[0] in shared]
        found = []
        for key in both:
            rows = [table.get(key) for table in tables]
            missing = [f"only in {name}" for name, row in zip(names, reversed(rows), strict=True) if row is None]
            differing = missing or [
                name if name == "content_hash" else f"{name} {rows[0][name]} / {rows[1][name]}"  # type: ignore[index]
                for name in _COMPARED
                if rows[0][name] != rows[1][name]  # type: ignore[index]
            ]
            if differing:
                found.append((*key, differing))
        return found
    except (KeyError, TypeError) as error:
        raise TaskError(
            f"The file to compare with is no report of an audit: {error!r}.",
            "Make one with `rollout-service tasks --audit --json`.",
        ) from error


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
