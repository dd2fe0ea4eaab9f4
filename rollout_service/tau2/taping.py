"""The tape of a service: which settings and tasks it belongs to, and its part for each episode.

Invariant: what must be equal for a tape to be used is decided here, once, for the client's check and for the actors.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import rollout_service.served_user as served_user
from rollout_service.collecting.request import EpisodeRequest
from rollout_service.config import RolloutConfig
from rollout_service.record.trajectory import TaskRef
from rollout_service.tape.episode import EpisodeTape
from rollout_service.tape.folder import TapeFolder
from rollout_service.tape.recording import Take
from rollout_service.tape.request import ModelRequest
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
    user, judge = served_user.as_called(config).user, config.evaluation.judge
    review = user.review
    reviewed = {"review": _model(review.model or "τ²'s default", review.arguments)} if review.is_on else {}
    return reviewed | {
        "tau2": f"{compat.DISTRIBUTION} {compat.VERSION}",
        "user": _model(str(user.model), user.sent) if config.user_kind == "llm" else config.user_kind,
        "judge": _model(judge.model or "τ²'s default", judge.arguments),
    }


def _model(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    asked = ModelRequest.of(**{**arguments, "model": name, "messages": []})
    return {"model": asked.model, **asked.parameters}


def check_tasks(folder: TapeFolder | None, chosen: Iterable[TaskRef]) -> None:
    """Check that the tape, if there is one, has none of the tasks in another version.

    Raises:
        TapeError: names the first such task.
    """
    if folder is None:
        return
    for each in chosen:
        content = functools.partial(tasks.content, tasks.get(each))
        folder.check_task(each.domain, each.task_id, tasks.hash_of(each), content)


def of_episode(
    folder: TapeFolder | None, config: RolloutConfig, request: EpisodeRequest, task: compat.Task
) -> EpisodeTape | None:
    """The tape as an episode sees it. None: there is no tape."""
    mode = config.tape.mode
    if folder is None or mode == "off":
        return None
    name, task_hash = request.task, tasks.hash_of(request.task)
    take = Take(name.domain, name.task_id, task_hash, request.sample_index, request.seed, request.attempt)
    return EpisodeTape(folder, mode, take, lambda: tasks.content(task))
