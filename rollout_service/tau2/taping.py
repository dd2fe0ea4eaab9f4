"""The tape of a service: which settings and tasks it belongs to, and its part for each episode.

Invariant: what must be equal for a tape to be used is decided here, once, for the client's check and for the actors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rollout_service.collecting.request import EpisodeRequest
from rollout_service.config import RolloutConfig
from rollout_service.record.trajectory import TaskRef
from rollout_service.tape.episode import EpisodeTape
from rollout_service.tape.folder import TapeFolder
from rollout_service.tape.recording import Take
from rollout_service.tape.request import ModelRequest, digest
from rollout_service.tau2 import compat, tasks


def opened(config: RolloutConfig) -> TapeFolder | None:
    """The configured tape, checked, and made if it is to be recorded. None: there is none.

    Raises:
        TapeError: it cannot be read or written, or was recorded with other settings.
    """
    tape = config.tape
    if not tape.is_on or tape.path is None:
        return None
    folder = TapeFolder(tape.path)
    if tape.asks_nobody:
        folder.check_settings(settings(config))
    else:
        folder.open_for_writing(settings(config))
    return folder


def settings(config: RolloutConfig) -> dict[str, Any]:
    """What all answers of a tape have in common, as JSON values."""
    user, judge = config.user, config.evaluation.judge
    own = {} if user.temperature is None else {"temperature": user.temperature}
    return {
        "tau2": f"{compat.DISTRIBUTION} {compat.VERSION}",
        "user": _model(str(user.model), {**user.arguments, **own}) if config.user_kind == "llm" else config.user_kind,
        "judge": _model(judge.model or "τ²'s default", judge.arguments),
    }


def _model(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    asked = ModelRequest.of(**{**arguments, "model": name, "messages": []})
    return {"model": asked.model, **asked.parameters}


def check_tasks(folder: TapeFolder, chosen: Iterable[TaskRef]) -> None:
    """Check that the tape has none of the tasks in another version.

    Raises:
        TapeError: names the first such task.
    """
    folder.check_tasks((each.domain, each.task_id, content(tasks.get(each))) for each in chosen)


def content(task: compat.Task) -> dict[str, Any]:
    """The task as JSON values."""
    values: dict[str, Any] = task.model_dump(mode="json")
    return values


def of_episode(
    folder: TapeFolder | None, config: RolloutConfig, request: EpisodeRequest, task: compat.Task
) -> EpisodeTape | None:
    """The tape as an episode sees it. None: there is no tape."""
    mode = config.tape.mode
    if folder is None or mode == "off":
        return None
    values, name = content(task), request.task
    take = Take(name.domain, name.task_id, digest(values), request.sample_index, request.seed, request.attempt)
    return EpisodeTape(folder, mode, take, values)
