"""Policy replicas with a prefix cache, simulated, and episodes that take turns with them.

The model of cost, like 4 B parameters on an H100: a replica works in steps. A step takes `PROMPT_SECONDS` for each
token of prompts that it computes, at most `CHUNK` of them. Turns whose prompts are whole sample `STEP_TOKENS` tokens in
a step. Each of these takes `BASE_SECONDS` for all turns together, and `CONTEXT_SECONDS` more for each token of their
contexts. Keys and values of all tokens take room. Those of turns that
run are locked. The rest is the prefix cache: the session that was used least recently loses its last tokens first. All
episodes share the beginning of their prompts, which stays. A turn waits until its prompt fits beside the locked tokens;
when an answer no longer fits, the newest turn is broken off and begins again later.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from deploy.engines.prefix_use import fixed_share
from rollout_service.policy.replicas import CacheFigures, Occupancy

STEP_TOKENS = 25
BASE_SECONDS, CONTEXT_SECONDS, PROMPT_SECONDS = 6e-3, 5e-8, 3e-5
CHUNK = 16384
_LATEST = 32


@dataclass
class Kind:
    """What episodes are like. Lengths are in tokens and drawn between 0.5 and 1.5 times these."""

    shared: int = 3000
    opening: int = 500
    """Of the first prompt, beyond what all share."""
    answer: int = 100
    observation: int = 300
    turns: int = 12
    think_seconds: float = 0.5
    """Mean time of the user and the tools between two turns."""

    @property
    def own_tokens(self) -> int:
        """Mean of what an episode has of its own at its end."""
        return self.opening + self.turns * self.answer + (self.turns - 1) * self.observation


@dataclass(eq=False)
class Session:
    """One episode."""

    kind: Kind
    chance: random.Random
    replica: Replica | None = None
    turn: int = 0
    turns: int = 0
    own: int = 0
    """Tokens of its own: prompt and answer of the turn that runs."""
    cached: int = 0
    """Those whose keys and values are there."""
    known: int = 0
    """Those of the turns before."""
    left: int = 0
    """Tokens that the turn still has to sample."""

    def __post_init__(self) -> None:
        self.turns = max(1, self._drawn(self.kind.turns))
        self.own = self._drawn(self.kind.opening)

    def _drawn(self, mean: float) -> int:
        return int(mean * self.chance.uniform(0.5, 1.5))

    def ask(self) -> None:
        """Begin a turn."""
        self.left = max(1, self._drawn(self.kind.answer))

    def go_on(self) -> None:
        """What the user or a tool says is added to the context."""
        self.turn += 1
        self.known = self.own
        self.own += self._drawn(self.kind.observation)


@dataclass(eq=False)
class Replica:
    """One engine."""

    name: str
    capacity: int
    shared: int
    idle: OrderedDict[Session, None] = field(default_factory=OrderedDict)
    """Sessions with cached tokens and without a turn, least recently used first."""
    running: list[Session] = field(default_factory=list)
    queue: deque[Session] = field(default_factory=deque)
    sampled: int = 0
    later_turns: int = 0
    recomputed: int = 0
    recompute_seconds: float = 0.0
    moments: list[float] = field(default_factory=lambda: [0.0] * 5)
    """As SGLang's: number of decoding steps, and sums of turns, seconds, turns², turns times seconds."""
    contexts: deque[int] = field(default_factory=lambda: deque(maxlen=_LATEST))
    _cached: int = 0
    """Tokens of idle sessions."""
    _locked: int = 0
    """Tokens of running turns that are computed or reserved."""

    def says(self) -> Occupancy:
        """Its figures."""
        contexts = len(self.contexts)
        mean = sum(self.contexts) / contexts if contexts else 0.0
        shared = float(self.shared) if contexts else 0.0
        figures = CacheFigures(
            self.capacity,
            len(self.running) + len(self.queue),
            sum(session.cached == session.own for session in self.running),
            self.later_turns,
            self.recomputed,
            self.recompute_seconds,
            contexts,
            mean,
            shared,
            fixed_share(self.moments),
        )
        return Occupancy(len(self.queue), self._locked / self.capacity, 0.0, figures)

    def add(self, session: Session) -> None:
        """Queue a turn."""
        self.queue.append(session)

    def step(self) -> tuple[float, list[Session]]:
        """Work for one step. Returns its seconds, and the sessions whose turns are over."""
        self._admit()
        if not self.running:
            return 0.0, []
        room, computed, done = CHUNK, 0, []
        turns, context = 0, 0
        for session in list(self.running):
            if session not in self.running:
                continue
            missing = session.own - session.cached
            if missing:
                count = min(missing, room)
                session.cached += count
                room, computed = room - count, computed + count
                continue
            tokens = min(STEP_TOKENS, session.left)
            if not self._make_room(tokens, session):
                continue
            session.own += tokens
            session.cached, session.left = session.own, session.left - tokens
            self.sampled += tokens
            turns, context = turns + 1, context + self.shared + session.own
            if not session.left:
                done.append(session)
        for session in done:
            self.running.remove(session)
            self.contexts.append(self.shared + session.own)
            self._locked -= session.own
            self.idle[session] = None
            self._cached += session.cached
        seconds = STEP_TOKENS * (BASE_SECONDS + CONTEXT_SECONDS * context) if turns else 0.0
        for index, value in enumerate((1.0, turns, seconds, turns**2, turns * seconds) if turns else ()):
            self.moments[index] += value
        return seconds + PROMPT_SECONDS * computed, done

    def _admit(self) -> None:
        while self.queue:
            session = self.queue[0]
            if self.running and self.shared + self._locked + session.own + session.left > self.capacity:
                return
            self.queue.popleft()
            if session in self.idle:
                del self.idle[session]
                self._cached -= session.cached
            if session.turn and session.known:
                self.later_turns += 1
                self._recomputes(session.known - min(session.known, session.cached))
                session.known = 0  # a turn that is broken off counts once
            self._locked += session.own
            self.running.append(session)
            self._evict()

    def _make_room(self, tokens: int, session: Session) -> bool:
        """Room for tokens of this turn's answer. False: the turn itself was broken off."""
        while self.shared + self._locked + tokens > self.capacity and len(self.running) > 1:
            newest = self.running.pop()
            self._locked -= newest.own
            newest.cached = 0
            self._recomputes(newest.own)
            self.queue.append(newest)
            if newest is session:
                return False
        self._locked += tokens
        self._evict()
        return True

    def _recomputes(self, tokens: int) -> None:
        self.recomputed += tokens
        self.recompute_seconds += tokens * PROMPT_SECONDS

    def _evict(self) -> None:
        over = self.shared + self._locked + self._cached - self.capacity
        while over > 0 and self.idle:
            session = next(iter(self.idle))
            count = min(over, session.cached)
            session.cached -= count
            self._cached -= count
            over -= count
            if not session.cached:
                del self.idle[session]


@dataclass
class World:
    """Replicas, slots, and as many episodes as there are to play."""

    kind: Kind
    slots: int
    replicas: list[Replica]
    episodes: int
    limit: Callable[[World], int | None] = lambda world: None
    """Asked every `poll_seconds`."""
    ended: Callable[[int], None] = lambda tokens: None
    """Told the length of each context at its end."""
    at: Callable[[World], None] = lambda world: None
    """Called as often as `limit`, before it."""
    poll_seconds: float = 2.0
    seed: int = 0
    now: float = 0.0
    in_flight: int = 0
    sampled: int = 0
    allowed: int | None = None
    limits: list[int | None] = field(default_factory=list)

    def run(self) -> float:
        """Play all episodes. Returns the output tokens per second."""
        chance = random.Random(self.seed)
        left, number = self.episodes, 0
        events: list[tuple[float, int, object]] = []
        busy: set[str] = set()

        def post(seconds: float, what: object) -> None:
            nonlocal number
            number += 1
            heapq.heappush(events, (self.now + seconds, number, what))

        def wake(replica: Replica) -> None:
            if replica.name not in busy and (replica.queue or replica.running):
                busy.add(replica.name)
                post(0.0, replica)

        def send(session: Session) -> None:
            if session.replica not in self.replicas:
                session.replica = min(self.replicas, key=lambda each: len(each.running) + len(each.queue))
                session.cached = 0
            session.ask()
            session.replica.add(session)
            wake(session.replica)

        post(0.0, "look")
        while left or self.in_flight:
            self.now, _, what = heapq.heappop(events)
            if what == "look":
                self.at(self)
                self.allowed = self.limit(self)
                self.limits.append(self.allowed)
                post(self.poll_seconds, "look")
            elif isinstance(what, Session):
                send(what)
            elif isinstance(what, Replica):
                busy.discard(what.name)
                if what not in self.replicas:  # lost: its turns begin again elsewhere
                    for session in [*what.running, *what.queue]:
                        session.replica = None
                        send(session)
                    continue
                before = what.sampled
                seconds, done = what.step()
                self.sampled += what.sampled - before
                for session in done:
                    if session.turn + 1 < session.turns:
                        session.go_on()
                        post(seconds + chance.expovariate(1 / max(1e-6, self.kind.think_seconds)), session)
                    else:
                        self.in_flight -= 1
                        self.ended(what.shared + session.own)
                if what.running or what.queue:
                    busy.add(what.name)
                    post(seconds, what)
            most = self.slots if self.allowed is None else min(self.slots, self.allowed)
            while left and self.in_flight < most:
                left -= 1
                self.in_flight += 1
                post(chance.uniform(0, 0.5), Session(self.kind, random.Random(chance.random())))
        return self.sampled / self.now
