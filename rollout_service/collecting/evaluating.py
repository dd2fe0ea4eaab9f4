"""Evaluating: every task of a selection played several times, and counted.

Invariant: an evaluation is a collection whose groups are the trials of a task. A trajectory is counted when its group
comes, and is not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rollout_service.config.arguments as arguments
from rollout_service.collecting.progress import CollectionProgress
from rollout_service.collecting.request import MOST_EPISODES
from rollout_service.collecting.stream import GroupStream
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError, TaskError
from rollout_service.record.evaluation import Evaluation, IncompleteEvaluation

MOST_TRIALS = 1000
"""Most trials of one task. pass^k is given for each k up to them."""

SEED = 0
"""Seed of an evaluation that names none."""

NO_LIMIT = 1_000_000
"""Policy turns of an episode that τ²'s own limits always end before."""

OFFICIAL = {"max_turns": None, "response_length": None, "max_steps": 200, "max_errors": 10}
"""Limits of an episode by which τ²-bench's published results are made. None: there is no such limit."""

SELECTION = ("domain", "split", "ids", "seed", "sampling", "max_turns", "max_attempts", "weight", "budget")
"""Fields of a collection's request that an evaluation has too."""


def asked_for(trials: int, tasks: int | None, selection: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `RolloutClient.stream`, or of a `CollectionRequest`, for an evaluation.

    Args:
        trials: episodes of each task.
        tasks: only so many tasks; None: every task of the selection.
        selection: values of fields in `SELECTION`; None: it is left out.

    Raises:
        TaskError: a number is out of range.
        RolloutError: another field.
    """
    arguments.whole("trials", trials, 1, MOST_TRIALS, TaskError)
    arguments.optional(arguments.whole, "tasks", tasks, 1, MOST_EPISODES, TaskError)
    if unknown := sorted(set(selection) - set(SELECTION)):
        raise RolloutError(f"Unknown argument {', '.join(unknown)}.", f"Choose from {', '.join(SELECTION)}.")
    given = {name: value for name, value in selection.items() if value is not None}
    return {
        "n": None if tasks is None else tasks * trials,
        "group_size": trials,
        "seed": SEED,
        "sampler": "uniform",
        "max_turns": NO_LIMIT,
        "min_group_size": "any",  # an evaluation counts faults itself
    } | given


def conditions(running: RolloutConfig, max_turns: int | None) -> dict[str, Any]:
    """The limits of an evaluation's episodes by name, as in `OFFICIAL`, and whether all of them are `official`.

    Args:
        running: the service's settings.
        max_turns: as the evaluation was asked for; None: it was not said.
    """
    turns = NO_LIMIT if max_turns is None else max_turns
    found = {
        "max_turns": None if turns >= NO_LIMIT else turns,
        "response_length": running.policy.response_length,
        "max_steps": running.limits.max_steps,
        "max_errors": running.limits.max_errors,
    }
    return found | {"official": found == OFFICIAL}


async def counted(stream: GroupStream, trials: int, progress: bool, limits: Mapping[str, Any]) -> Evaluation:
    """What comes of the stream's groups, each of which has the trials of one task.

    Args:
        limits: as `conditions` gives them.
        progress: show progress on stderr.

    Raises:
        IncompleteEvaluation: the service was lost on the way, or a budget ended it early.
        RolloutError: the collection was not accepted.
    """
    found = Evaluation(trials, conditions=dict(limits))
    await stream.aopen()
    assert stream.episodes is not None, "an evaluation has an end"
    with CollectionProgress(stream.episodes, enabled=progress) as bar:
        stream.tell = bar.waits
        try:
            async for group in stream:
                found.add(group)
                bar.add(group)
        except RolloutError as error:
            raise IncompleteEvaluation(found, stream.episodes - found.summary.episodes, str(error)) from error
    return found
