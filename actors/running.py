"""RunningCollection: a collection while the service works on it, with its episodes' results and whoever waits for it.

Invariant: each episode that is done has a result here until its group is handed out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import actors.filtering as filtering
import actors.learning as learning
import rollout_service.logs as logs
from actors.attempt import Ending, Result
from actors.collection_log import CollectionLog
from actors.delivery import AHEAD, Delivery, on_disk
from actors.results import expired, reference
from rollout_service.collecting.collection import ENDLESS, Collection
from rollout_service.collecting.drawing import Drawing
from rollout_service.collecting.episode_state import Handout
from rollout_service.collecting.group import Group
from rollout_service.collecting.judging import check_judged
from rollout_service.collecting.request import Accepted, EpisodeRequest
from rollout_service.collecting.scheduler import Assignment
from rollout_service.collecting.spending import Spending
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.collecting.waits import HELD_BACK, NO_SLOT
from rollout_service.config.budget import NO_LIMIT, Budget
from rollout_service.errors import BudgetReached, RolloutError, ServiceError
from rollout_service.journal.entries import Acknowledged, Delivered, Discarded, Drawn, Ended, Reopened, Spent, Stored
from rollout_service.journal.journal import Journal, NoJournal

_log = logs.logger(__name__)

_NONE = NoJournal()


class RunningCollection:
    """One collection, from its request until its last group is handed out or it is cancelled."""

    def __init__(
        self,
        collection: Collection,
        drawing: Drawing,
        first_draw: int = 0,
        budget: Budget = NO_LIMIT,
        client: str = "",
        journal: Journal | NoJournal = _NONE,
        parts: str | None = None,
        submission: str | None = None,
    ) -> None:
        """
        Args:
            client: id of the client that it belongs to.
            journal: where its progress is written.
            parts: the journal's directory; None: there is none.
            submission: id of the call that asked for it, see `Coordinator.submit`.
        """
        self.journal = journal
        self.parts = parts
        self.collection = collection
        self.drawing = drawing
        wanted = filtering.wanted(collection)
        self.asked = None if wanted == ENDLESS else wanted * collection.group_size - len(collection.unstarted.before)
        """Episodes that it would play if no budget ended it early; None: it is endless."""
        self.first_draw = first_draw
        self.client = client
        self.submission = submission
        self.spending = Spending(budget)
        self.limit: str | None = None
        """The limit of a budget that ended it early."""
        self.timer: asyncio.TimerHandle | None = None
        """Runs until `budget.wall_seconds` are over."""
        self.active = 0
        """Episodes that run on an actor now."""
        self.changed = asyncio.Event()
        """Set when an episode ended or the collection failed."""
        self.error: RolloutError | None = None
        """Why the collection cannot go on."""
        self.is_parked = False
        """Whether nothing of it begins until its reader comes back, or another one opens it again."""
        self.kept_until: float | None = None
        """When it is given up if it is still parked, see `Keeping`."""
        self._results: dict[int, Result] = {}
        self.delivery = Delivery()
        self.rewards: dict[int, float] = {}
        """Reward by episode, also of those handed out."""
        self.observed: set[int] = set()
        """Groups from which further draws were learned."""
        self._reader = 0
        """Number of the call that waits for the next group."""
        self.log = CollectionLog()
        self._since = time.monotonic()

    @property
    def requests(self) -> list[EpisodeRequest]:
        """The requests of the episodes that were drawn."""
        return self.drawing.requests

    def draw(self, episode: int) -> None:
        """Draw the group of an episode that begins, if it was not drawn yet."""
        for group, episodes in self.drawing.reach(episode):
            self.journal.record(Drawn(self.name, group, episodes, self.drawing.position))

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
    def spent(self) -> Spent:
        """What it has spent so far."""
        return Spent(self.name, replace(self.spending), time.monotonic() - self._since)

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

    @property
    def shortfall(self) -> RolloutError | None:
        """Why the collection, which is exhausted, has fewer groups than were asked for; None: it has them."""
        if self.limit is not None and not filtering.is_enough(self):
            return BudgetReached(self.limit, "What had begun was delivered; raise the budget for the rest.")
        return filtering.too_few(self)

    def check_whole(self) -> None:
        """Check that the collection, which is exhausted, was not ended early.

        Raises:
            BudgetReached, TooFewKept: it was, see `shortfall`.
        """
        if (error := self.shortfall) is not None:
            if self.is_over:  # else the reader still has to acknowledge groups
                self.end()
            raise error

    def end_if_short(self) -> None:
        """Note that nobody waits any more for a collection that was ended early, of which the reader has all."""
        if self.shortfall is not None:
            self.end()

    @property
    def name(self) -> str:
        """The collection's id."""
        return self.collection.collection_id

    @property
    def accepted(self) -> Accepted:
        """The answer to whoever asked for it."""
        return Accepted(self.name, self.asked, self.first_draw, filtering.keeps(self))

    def keep(self, episode: int, attempt: int, result: Result) -> None:
        """Note the result of an episode that is done."""
        self.journal.record(Stored(self.name, episode, attempt, result[0]))
        self._keep(episode, on_disk(result) if self.is_parked else result)
        self.changed.set()
        if self.collection.is_finished(group := episode // self.collection.group_size):
            learning.observe(self, group)
            filtering.judge(self, group)

    def forget(self, group: int) -> None:
        """Take that nobody needs the results of this group."""
        self.delivery.acknowledge((group,), again=False)
        for episode in self.played(group):
            self._results.pop(episode, None)

    def waiting_result(self, episode: int) -> EpisodeSummary | None:
        """The episode's result that was not handed out yet; None: it has none."""
        return self._results[episode][0] if episode in self._results else None

    def _keep(self, episode: int, result: Result) -> None:
        self.rewards.pop(episode, None)
        if (reward := result[0].reward) is not None:
            self.rewards[episode] = reward
        self._results[episode] = result

    def drop(self, ending: Ending) -> None:
        """Note that what came of an attempt is not the episode's result."""
        if ending.result is not None and ending.result[0].part is not None:
            self.journal.record(Discarded(ending.result[0].part))

    def restore(
        self, summaries: Mapping[int, EpisodeSummary], acknowledged: Sequence[int], spent: Spent | None = None
    ) -> None:
        """Take the results that an earlier coordinator had, the groups that the reader has for good, and the spend."""
        self.delivery.restore(acknowledged)
        for episode, summary in summaries.items():
            self._keep(episode, (summary, None))
        for group in list(self.collection.shelf.ready):
            self.observed.add(group)
            filtering.judge(self, group)
        if spent is not None:
            self.spending = replace(spent.spending, episodes=self.collection.done)  # what ran begins again
            self._since -= spent.seconds

    def next_group(self, version: int) -> Group | None:
        """The next finished group, with the trainer at weight version `version`; None: none is finished, or it waits
        for others, see `until_changed`."""
        if self._sharing_seconds:
            return None
        most = AHEAD if self._is_noted_ahead else 1
        while len(self.delivery) < most and (handout := self.collection.take()) is not None:
            self._hand_out(handout, version)
        number = self.delivery.next()
        self.collection.ahead = len(self.delivery)
        return None if number is None else self._made(number)

    @property
    def _is_noted_ahead(self) -> bool:
        """Whether groups are handed out before their reader asks for them. One that may become too old is not, nor one
        that the reader may drop."""
        is_sure = self.collection.staleness.maximum is None and filtering.keeps(self) != "reader"
        return self.parts is not None and is_sure

    @property
    def _sharing_seconds(self) -> float:
        """How long a finished group waits for others that share its transaction. It waits for none that cannot come."""
        it = self.collection
        are_coming = self.active and it.shelf.ready and it.held_back is None and self.error is None
        return self.delivery.sharing_seconds if are_coming and self._is_noted_ahead else 0.0

    async def until_changed(self) -> None:
        """Wait until `next_group` may give another answer."""
        self.changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._sharing_seconds or None):
                await self.changed.wait()

    async def until_noted(self, group: Group) -> None:
        """Wait until it is safe that this group was handed out. Errors are those of `Journal.durable`."""
        await self.journal.durable(self.delivery.position(group.number))

    def acknowledge(self, numbers: Sequence[int], again: bool = False) -> None:
        """Note that the reader has these groups for good.

        Args:
            again: the reader may have missed an answer: hand out once more what it has not acknowledged.
        """
        if numbers:
            self.journal.record(Acknowledged(self.name, tuple(numbers)))
            self.collection.acknowledge(numbers)
        self.delivery.acknowledge(numbers, again)
        self.collection.ahead = len(self.delivery)

    def new_reader(self) -> int:
        """Number of a call that wants the next group. An earlier one that still waits ends: its reader lost it, and the
        group that it would take would be lost as well."""
        self._reader += 1
        self.changed.set()
        return self._reader

    def check_reader(self, number: int) -> None:
        """Check that no later call wants the next group.

        Raises:
            ServiceError: one does.
        """
        if number != self._reader:
            text = f"The next group of collection {self.name} was asked for again."
            raise ServiceError(text, "Have one reader at a time.")

    def belongs_to(self, client: str | None) -> bool:
        """Whether this client reads it. None stands for the service itself, which may do anything."""
        return client is None or client == self.client

    def check_client(self, client: str | None) -> None:
        """Check that no other client opened it again: what this one took would be delivered twice, or lost.

        Raises:
            ServiceError: one did.
        """
        if not self.belongs_to(client):
            text = f"Collection {self.name} is read by client {self.client} now."
            raise ServiceError(text, "What this client did not acknowledge comes to that one.")

    def park(self) -> None:
        """Begin nothing more until its reader comes back. What is stored takes no memory meanwhile."""
        self.is_parked = True
        self._results = {episode: on_disk(result) for episode, result in self._results.items()}
        self.delivery.park()
        self.changed.set()

    async def reopen(self, client: str, silent: str | None, seconds: float, judges: bool | None = None) -> Accepted:
        """Become this client's, as soon as no other one but `silent` reads it. All that is not acknowledged is handed
        out, also what was handed out before.

        Raises:
            ServiceError, TaskError: another one still reads it after so many seconds, it ended, or see `check_judged`.
        """
        check_judged(self.name, filtering.keeps(self), judges)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not (self.is_parked or self.client in (client, silent) or self.error is not None):
                    self.changed.clear()
                    await self.changed.wait()
        if self.error is not None:
            raise self.error
        if not self.is_parked and self.client not in (client, silent):
            raise ServiceError(f"Collection {self.name} is read by client {self.client}.", "Close that client first.")
        if client != self.client:
            self.journal.record(Reopened(self.name, client))
        self.client = client
        self.new_reader()  # a call of the former client that still waits would take a group that nobody gets
        self.acknowledge((), again=True)
        over = (group for group in self.delivery.acknowledged if not filtering.is_gone(self, group))
        left = None if self.asked is None else self.asked - sum(len(self.played(group)) for group in over)
        return self.accepted._replace(episodes=left)

    def played(self, group: int) -> list[int]:
        """The group's episodes, without those that were done before."""
        size = self.collection.group_size
        return [
            episode
            for episode in range(group * size, (group + 1) * size)
            if episode not in self.collection.unstarted.before
        ]

    def unfinished(self) -> list[str]:
        """Ids of the episodes that have begun, or may have, and are not done."""
        begun = range(self.collection.begun * self.collection.group_size)
        return [self.requests[episode].trajectory_id for episode in begun if not self.collection.state(episode).done]

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left. A journal keeps what was handed out until it is acknowledged."""
        return self.collection.exhausted and (self.parts is None or not self.delivery.given)

    def end(self) -> None:
        """Note that nobody waits for it any more."""
        self.journal.record(Ended(self.name))

    def _hand_out(self, handout: Handout, version: int) -> None:
        """Hand out a group. Episodes in it that are too old for weight version `version` become aborted ones, for which
        a filter may drop the group after all."""
        for episode in handout.expired:
            self._results[episode] = expired(self, episode, self._results[episode][0].versions, version)
            self.rewards.pop(episode, None)
        if handout.expired and not filtering.judge(self, handout.group):
            return
        position = self.journal.record(Delivered(self.name, handout.group, handout.expired))
        results = {episode: self._results.pop(episode) for episode in self.played(handout.group)}
        self.delivery.add(handout.group, results, position)

    def _made(self, number: int) -> Group:
        """A group that was handed out and is not acknowledged."""
        results = self.delivery.given[number]
        requests = [self.requests[episode] for episode in results]
        references = [reference(self, *result) for result in results.items()]
        return Group(requests, references, number, self.collection.withheld(number), filtering.dropped(self))

    @property
    def held_back(self) -> str | None:
        """Why no waiting episode starts now; None: none waits."""
        if not self.collection.waiting or self.error is not None:
            return None
        if (pause := self.pause) is not None:
            return pause
        return HELD_BACK.get(self.collection.held_back or "", NO_SLOT)

    @property
    def pause(self) -> str | None:
        """What stops the whole collection, with its remedy; None: nothing does."""
        return self.collection.breaker.told(time.monotonic())

    def log_beginning(self) -> None:
        """Log that it has begun."""
        members = self.collection.group_size
        _log.info("Collection %s begun: %s episodes in groups of %d.", self.name, self._asked, members)

    @property
    def _asked(self) -> str:
        """The number of its episodes, for log lines."""
        return "endless" if self.asked is None else str(self.asked)

    @property
    def account(self) -> str:
        """How far it came, for log lines."""
        it, seconds = self.collection, time.monotonic() - self._since
        return (
            f"after {seconds:.0f} s: {it.done} of {self._asked} episodes done, {it.failed} failed, {it.retries} retries"
        )
