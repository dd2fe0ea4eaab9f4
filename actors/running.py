"""RunningCollection: a collection while the service works on it, with its episodes' results and whoever waits for it.

Invariant: each episode that is done has a result here until its group is handed out.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import ray

from rollout_service.cluster import Reference
from rollout_service.collecting.collection import Collection, Handout
from rollout_service.collecting.group import Group
from rollout_service.collecting.request import EpisodeRequest, aborted_trajectory
from rollout_service.collecting.scheduler import Assignment
from rollout_service.collecting.spending import Spending
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.config.budget import NO_LIMIT, Budget
from rollout_service.errors import BudgetReached, Fault, FaultKind, RolloutError
from rollout_service.record.trajectory import Trajectory

_HELD_BACK = {
    "buffer": "the reader is too slow, finished groups wait to be taken (service.max_buffered_groups)",
    "staleness": "without new weights a further group would be too old when it is taken (service.max_staleness)",
}

Result = tuple[EpisodeSummary, Reference[Trajectory]]
"""An episode's summary, and the reference of its trajectory in the object store."""


class RunningCollection:
    """One collection, from its request until its last group is handed out or it is cancelled."""

    def __init__(
        self,
        collection: Collection,
        requests: list[EpisodeRequest],
        first_draw: int = 0,
        budget: Budget = NO_LIMIT,
        client: str = "",
    ) -> None:
        """
        Args:
            client: id of the client that it belongs to.
        """
        self.collection = collection
        self.requests = requests
        self.asked = collection.size
        """Episodes that it would play if no budget ended it early."""
        self.first_draw = first_draw
        self.client = client
        self.spending = Spending(budget)
        self.limit: str | None = None
        """The limit of a budget that ended it early."""
        self.timer: asyncio.TimerHandle | None = None
        """Runs until `budget.wall_seconds` are over."""
        self.active = 0
        """Episodes that run on an actor now."""
        self.pausing = 0
        """Episodes that wait for their next attempt."""
        self.changed = asyncio.Event()
        """Set when an episode ended or the collection failed."""
        self.error: RolloutError | None = None
        """Why the collection cannot go on."""
        self._results: dict[int, Result] = {}
        self._rewards: dict[int, float] = {}
        """Reward by episode, also of those handed out."""
        self._since = time.monotonic()

    def request_of(self, assignment: Assignment, version: int) -> EpisodeRequest:
        """The request of this attempt, with the trainer at weight version `version`."""
        allowed = self.collection.staleness.maximum
        return replace(
            self.requests[assignment.episode],
            attempt=assignment.attempt,
            min_version=0 if allowed is None else max(0, version - allowed),
            waited_seconds=time.monotonic() - self._since,
        )

    @property
    def reached(self) -> str | None:
        """The limit of its own budget that is reached."""
        limit = self.spending.limit(time.monotonic() - self._since)
        return None if limit is None else f"The collection's budget is spent: {limit}."

    def end_early(self, limit: str) -> bool:
        """Begin no further group, because of this limit of a budget. False: none is left."""
        if not self.collection.unbegun:
            return False
        self.limit = limit
        self.collection.begin_no_more()
        self.changed.set()
        return True

    def check_whole(self) -> None:
        """Check that the collection, which is exhausted, was not ended early.

        Raises:
            BudgetReached: it was, with the limit.
        """
        if self.limit is not None:
            raise BudgetReached(self.limit, "What had begun was delivered; raise the budget for the rest.")

    def keep(self, episode: int, result: Result) -> None:
        """Note the result of an episode that is done."""
        reward = result[0].reward
        self._rewards.pop(episode, None)
        if reward is not None:
            self._rewards[episode] = reward
        self._results[episode] = result
        self.changed.set()

    def group(self, handout: Handout, version: int) -> Group:
        """Hand out a group. Episodes in it that are too old for weight version `version` become aborted ones."""
        size = self.collection.group_size
        for episode in handout.expired:
            self._results[episode] = self._expired(episode, version)
            self._rewards.pop(episode, None)
        members = range(handout.group * size, (handout.group + 1) * size)
        played = [episode for episode in members if episode not in self.collection.before]
        return Group(
            requests=[self.requests[episode] for episode in played],
            trajectories=[self._results.pop(episode)[1] for episode in played],
        )

    def _expired(self, episode: int, version: int) -> Result:
        versions = self._results[episode][0].versions
        text = (
            f"its oldest weight version was {None if versions is None else versions[0]} when the trainer was at "
            f"{version}, in every attempt: max_staleness is {self.collection.staleness.maximum}"
        )
        return lost(self.requests[episode], Fault(FaultKind.SERVICE, "TooOld", text, retryable=False))

    @property
    def held_back(self) -> str | None:
        """Why no waiting episode starts now; None: none waits."""
        if not self.collection.waiting or self.error is not None:
            return None
        return _HELD_BACK.get(self.collection.held_back or "", "no slot is free")

    @property
    def account(self) -> str:
        """How far it came, for log lines."""
        it, seconds = self.collection, time.monotonic() - self._since
        return (
            f"after {seconds:.0f} s: {it.done} of {self.asked} episodes done, {it.failed} failed, {it.retries} retries"
        )

    def progress(self, places: list[tuple[float, str]]) -> dict[str, Any]:
        """What `Coordinator.status` says of the collection.

        Args:
            places: age in seconds and place of its running episodes.
        """
        collection = self.collection
        rewards = [reward for episode, reward in self._rewards.items() if collection.is_done(episode)]
        return {
            "episodes": self.asked,
            "done": collection.done,
            "scored": len(rewards),
            "mean_reward": sum(rewards) / len(rewards) if rewards else None,
            "waiting": collection.waiting,
            "running": self.active,
            "places": dict(Counter(place for _, place in places)),
            "oldest_seconds": max((age for age, _ in places), default=None),
            "to_be_tried_again": self.pausing,
            "held_back": collection.held_back,
            "limit": self.limit,
            "retries": collection.retries,
            "failed": collection.failed,
            "late": collection.late,
        }


def lost(request: EpisodeRequest, fault: Fault) -> Result:
    """The result of an episode of which nothing came back."""
    trajectory = aborted_trajectory(request, fault)
    return EpisodeSummary.of(trajectory), ray.put(trajectory)
