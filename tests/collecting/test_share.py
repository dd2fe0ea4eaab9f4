"""How collections share the slots: by their weights, with nobody left out, and nobody in another's way."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.collecting.collection import Collection
from rollout_service.collecting.scheduler import Assignment, Scheduler


class Clients:
    """Collections that are always taken from, on one clock. Episodes of a collection last as long as it says."""

    def __init__(self, slots: int, seed: int = 0) -> None:
        self.scheduler = Scheduler()
        self.scheduler.add_actor("a", slots)
        self.random = random.Random(seed)
        self.lengths: dict[str, float] = {}
        self.used: Counter[str] = Counter()
        """Slot-seconds of each collection."""
        self.starts: dict[str, list[float]] = {}
        self.now = 0.0
        self.running: list[tuple[float, int, Assignment]] = []
        self.numbers = itertools.count()
        self.readers: list[Collection] = []

    def add(self, name: str, weight: float = 1.0, length: float = 10.0, episodes: int = 5000, **more: int) -> None:
        collection = Collection(name, episodes, 1, weight=weight, **more)
        self.scheduler.add(collection, self.now)
        self.lengths[name] = length
        self.starts[name] = []
        if not more:
            self.readers.append(collection)

    def run(self, until: float) -> None:
        while True:
            while (assignment := self.scheduler.next(self.now)) is not None:
                name = assignment.collection_id
                length = self.lengths[name] * self.random.uniform(0.5, 1.5)
                heapq.heappush(self.running, (self.now + length, next(self.numbers), assignment))
                self.starts[name].append(self.now)
            if not self.running or self.running[0][0] > until:
                self.now = until
                return
            at, _, assignment = heapq.heappop(self.running)
            for _, _, other in [(at, 0, assignment), *self.running]:
                self.used[other.collection_id] += at - self.now
            self.now = at
            self.scheduler.finish(assignment, None, None, at)
            for reader in self.readers:
                reader.take()


@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 5.0]), min_size=2, max_size=4),
    lengths=st.lists(st.sampled_from([5.0, 10.0, 20.0]), min_size=4, max_size=4),
    slots=st.integers(1, 8),
    seed=st.integers(0, 9),
)
@settings(max_examples=8)
def test_shares_of_the_slots_time_converge_to_the_weights(weights, lengths, slots, seed):
    clients = Clients(slots, seed)
    for index, weight in enumerate(weights):
        clients.add(f"c{index}", weight, lengths[index])
    clients.run(until=1500.0)
    total = sum(clients.used.values())
    for index, weight in enumerate(weights):
        share = clients.used[f"c{index}"] / total
        assert abs(share - weight / sum(weights)) < 0.06


@given(weight=st.sampled_from([0.1, 0.3, 1.0]), slots=st.integers(1, 8), others=st.integers(1, 4))
@settings(max_examples=8)
def test_no_collection_waits_for_ever(weight, slots, others):
    clients = Clients(slots)
    for index in range(others):
        clients.add(f"heavy{index}")
    clients.add("light", weight)
    clients.run(until=2000.0)
    starts = clients.starts["light"]
    longest = max(b - a for a, b in itertools.pairwise([0.0, *starts, 2000.0]))
    assert longest <= 100 + 15.0 * (others / weight + 1), "it may have held all slots at once before"


def test_a_collection_that_comes_later_gets_its_share_and_no_more():
    clients = Clients(4)
    clients.add("first")
    clients.run(until=1000.0)
    clients.used.clear()
    clients.add("second")
    clients.run(until=3000.0)
    assert 0.45 < clients.used["second"] / sum(clients.used.values()) < 0.55


def test_a_reader_that_takes_nothing_holds_up_nobody():
    clients = Clients(4)
    clients.add("never read", max_buffered_groups=3)
    clients.add("read")
    clients.run(until=1000.0)
    assert len(clients.starts["never read"]) <= 3 + 4
    assert clients.used["read"] > 0.95 * (clients.used["read"] + clients.used["never read"])


def test_one_that_could_not_start_for_long_has_saved_up_nothing():
    clients = Clients(4)
    clients.add("paused", max_buffered_groups=1)
    clients.add("other")
    clients.run(until=1000.0)
    paused = clients.scheduler._collections["paused"]
    clients.readers.append(paused)
    while paused.take() is not None:
        pass
    clients.used.clear()
    clients.run(until=1200.0)
    assert clients.used["paused"] / sum(clients.used.values()) < 0.6
