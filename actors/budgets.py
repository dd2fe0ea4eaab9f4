"""Budgets: ends collections early when the service's budget, or their own, is spent.

Invariant: a collection that ends early says which limit it was. One of which every group has begun is not cut. What is
spent against a limit is journaled, so that a coordinator that is started again does not spend it once more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace

import rollout_service.logs as logs
from actors.running import RunningCollection
from rollout_service.collecting.spending import Spending
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.config.budget import NO_LIMIT, Budget
from rollout_service.errors import BudgetReached
from rollout_service.journal.entries import SERVICE, Spent

_log = logs.logger(__name__)


class Budgets:
    """The budget of the service, over those of its collections."""

    def __init__(self, budget: Budget, collections: Mapping[str, RunningCollection]) -> None:
        """
        Args:
            collections: those that are open, by id.
        """
        self.spending = Spending(budget)
        self._collections = collections
        self._since = time.monotonic()

    @property
    def reached(self) -> str | None:
        """The limit of the service's budget that is reached."""
        limit = self.spending.limit(time.monotonic() - self._since)
        return None if limit is None else f"The service's budget is spent: {limit}."

    def restore(self, spent: Spent | None) -> None:
        """Go on from what the service has spent before."""
        if spent is not None:
            self.spending = replace(spent.spending, budget=self.spending.budget)
            self._since -= spent.seconds

    def check_open(self) -> None:
        """Check that another collection may begin.

        Raises:
            BudgetReached: it may not.
        """
        if (limit := self.reached) is not None:
            raise BudgetReached(limit, "Start a service with a larger budget.")

    def opened(self, running: RunningCollection) -> None:
        """Look at a collection, and again when its time is over, or the service's."""
        own, service = running.spending.budget.wall_seconds, self.spending.budget.wall_seconds
        left = [] if own is None else [own - running.spent.seconds]
        if service is not None:
            left.append(self._since + service - time.monotonic())
        if left:
            running.timer = asyncio.get_running_loop().call_later(max(0.0, min(left)), self._check, running)
        self._check(running)

    def closed(self, running: RunningCollection) -> None:
        """Forget a collection."""
        if running.timer is not None:
            running.timer.cancel()

    def begun(self, running: RunningCollection, attempt: int) -> None:
        """Count an episode that begins, with its first attempt."""
        if attempt == 1:
            self.spending.begin()
            running.spending.begin()
            self._changed(running)

    def spent(self, running: RunningCollection, summary: EpisodeSummary) -> None:
        """Count what an attempt spent."""
        self.spending.add(summary)
        running.spending.add(summary)
        self._changed(running)

    def _changed(self, running: RunningCollection) -> None:
        for spent in (running.spent, Spent(SERVICE, replace(self.spending), time.monotonic() - self._since)):
            if spent.spending.budget != NO_LIMIT:
                running.journal.record(spent)
        self._check(running)

    def _check(self, running: RunningCollection) -> None:
        if (limit := running.reached) is not None:
            self._end(running, limit)
        if (limit := self.reached) is not None:
            for each in self._collections.values():
                self._end(each, limit)

    def _end(self, running: RunningCollection, limit: str) -> None:
        if running.end_early(limit):
            name, left = running.collection.collection_id, running.collection.size
            _log.info("Collection %s begins no further group, %d episodes in all: %s", name, left, limit)
