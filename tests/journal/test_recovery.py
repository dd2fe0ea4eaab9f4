"""Any interleaving of what happens to a collection, with deaths at any point: each episode reaches the reader once."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rollout_service.collecting.collection import Collection, Kept
from rollout_service.collecting.episode_state import Handout
from rollout_service.collecting.request import CollectionRequest, EpisodeRequest
from rollout_service.collecting.staleness import Staleness
from rollout_service.collecting.summary import EpisodeSummary
from rollout_service.errors import Fault, FaultKind
from rollout_service.journal.database import Database
from rollout_service.journal.entries import Acknowledged, Asked, Delivered, Entry, Stored
from rollout_service.record.trajectory import Outcome, TaskRef

SIZE = 2
FAULT = Fault(FaultKind.SERVICE, "OSError", "it broke", retryable=True)

ACTIONS = ("play", "play", "start", "finish", "fail", "ask", "ask", "miss", "acknowledge", "weights", "write", "die")

TOO_OLD = ("start", "start", "weights", "finish", "finish")
"""A group whose episodes are too old when they end."""


class World:
    """A coordinator that may die, its journal, and a reader that stays."""

    def __init__(self, groups: int, maximum: int | None, acknowledges: bool, most: int, order: random.Random) -> None:
        self.acknowledges = acknowledges
        """Whether asking for the next group acknowledges the last one."""
        self.most = most if maximum is None else 1
        """Groups that are taken before the reader asks for them, with the one that it asks for."""
        self.order = order
        self.database = Database(":memory:")
        self.groups, self.maximum, self.version = groups, maximum, 0
        self.given: dict[int, list[tuple[int, bool]]] = {}
        """What the reader has: by group, the attempt of each episode and whether it failed."""
        self.over: list[int] = []
        """Groups that the reader acknowledges; once more is harmless."""
        self.acknowledged: set[int] = set()
        """Groups of which this coordinator knows that the reader has them."""
        request = CollectionRequest(n=groups * SIZE, group_size=SIZE)
        episodes = [
            EpisodeRequest(f"c-{i}", "c", f"c-{i // SIZE}", i % SIZE, TaskRef("mock", "base", "1", 0), i)
            for i in range(groups * SIZE)
        ]
        self.database.commit([Asked("c", "client", request, episodes, (), 0, None)])
        self.live()

    def live(self) -> None:
        """A coordinator starts from what is on the disk."""
        self.unwritten: list[Entry] = []
        self.due: list[Handout] = []
        self.running: list[tuple[int, int, int]] = []
        self.collection = Collection(
            "c", self.groups, SIZE, max_attempts=2, staleness=Staleness(self.maximum), version=self.version
        )
        self.results: dict[int, tuple[int, bool]] = {}
        found = self.database.recover().collections
        if not found:
            assert len(self.given) == self.groups, "the journal is done only when the reader has everything"
            self.collection.cancel()
            return
        (journaled,) = found
        self.acknowledged = set(journaled.acknowledged)
        kept = {}
        for episode, stored in journaled.stored.items():
            versions, failed = stored.summary.versions, stored.summary.fault is not None
            kept[episode] = Kept(stored.attempt, versions[0] if versions else None, failed)
            self.results[episode] = stored.attempt, failed
        self.collection.restore(kept, journaled.delivered, journaled.acknowledged)

    def do(self, action: str) -> None:
        getattr(self, f"_{action}")()

    def _start(self) -> None:
        if offers := self.collection.offers():
            self.running.append((offers[-1], self.collection.start(offers[-1]), self.version))

    def _play(self) -> None:
        for _ in range(SIZE):
            self._start()
        for _ in range(SIZE):
            self._finish()

    def _finish(self, fault: Fault | None = None) -> None:
        if not self.running:
            return
        episode, attempt, version = self.running.pop(self.order.randrange(len(self.running)))
        versions = None if fault else (version, self.version)
        if self.collection.finish(episode, fault, "actor", versions):
            summary = EpisodeSummary(f"c-{episode}", Outcome.COMPLETED, "", 1.0, fault, versions)
            self.unwritten.append(Stored("c", episode, attempt, summary))
            self.results[episode] = attempt, fault is not None

    def _fail(self) -> None:
        self._finish(FAULT)

    def _weights(self) -> None:
        self.version += 1
        self.collection.updated(self.version)

    def _write(self) -> None:
        self.database.commit(self.unwritten)
        self.unwritten = []

    def _acknowledge(self) -> None:
        if self.over:
            self.unwritten.append(Acknowledged("c", tuple(self.over)))
            self.collection.acknowledge(self.over)
            self.acknowledged |= set(self.over)

    def _ask(self, arrives: bool = True) -> None:
        """The reader asks. The answer comes when it is on the disk that the group is handed out, unless it is lost with
        the coordinator."""
        if self.acknowledges:
            self._acknowledge()
        while len(self.due) < self.most and (taken := self.collection.take()) is not None:
            self.due.append(taken)
            self.unwritten.append(Delivered("c", taken.group, taken.expired))
        handout = self.due.pop(0) if self.due else None
        if handout is not None and Delivered("c", handout.group, handout.expired) in self.unwritten:
            self._write()
        if not arrives:
            self._die()
            return
        if handout is None:
            return
        assert handout.group not in self.acknowledged, (
            "what this coordinator knows to be acknowledged does not come again"
        )
        members = range(handout.group * SIZE, (handout.group + 1) * SIZE)
        came = [(self.results[e][0], self.results[e][1] or e in handout.expired) for e in members]
        assert self.given.setdefault(handout.group, came) == came, "what comes again is what came"
        self.over.append(handout.group)

    def _miss(self) -> None:
        self._ask(arrives=False)

    def _die(self) -> None:
        if self.unwritten and self.order.random() < 0.5:  # the last transaction was under way
            self._write()
        self.live()


@settings(max_examples=100)
@given(
    actions=st.lists(st.sampled_from(ACTIONS), max_size=60),
    groups=st.integers(1, 4),
    maximum=st.none() | st.integers(0, 1),
    acknowledges=st.booleans(),
    most=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
@example([*TOO_OLD, *TOO_OLD, "ask", "die", "ask"], 1, 0, False, 1, 0)
@example(["play", "write", "weights", "ask", "play", "ask", "die", "ask"], 1, 0, False, 1, 0)
def test_each_episode_reaches_the_reader_once_whenever_the_coordinator_dies(
    actions, groups, maximum, acknowledges, most, seed
):
    world = World(groups, maximum, acknowledges, most, random.Random(seed))
    for action in actions:
        world.do(action)
    for _ in range(20 * groups):
        for action in ("play", "ask"):
            world.do(action)
    world.do("acknowledge")
    world.do("write")
    assert sorted(world.given) == list(range(groups))
    assert Counter(len(came) for came in world.given.values()) == {SIZE: groups}
    assert world.database.recover().collections == []
