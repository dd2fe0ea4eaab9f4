"""Schedule: a collection, and the faults that are injected while it runs.

Invariant: a schedule is plain data that follows from its kind and seed alone, and survives JSON unchanged. Faults are
placed by the number of deliveries, so a schedule means the same on a slow machine as on a fast one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

TARGETS = ("actor", "replica", "engine", "controller", "coordinator", "client", "cluster")
"""What can be killed."""

BEHAVIOURS = (
    "status 500",
    "status 503",
    "rate limited",
    "empty",
    "truncated",
    "cut_json",
    "web_page",
    "hang",
    "refusal",
    "malformed_tool_call",
)
"""What the user simulator's endpoint may do in place of answering, see `tests.chaos.user`."""

DOMAINS = (("mock", 1.0), ("retail", 1.0))
"""What is played: domains and their weights."""

_LEASE = 15.0
"""Seconds that a client may sleep without losing its collection, with a margin; `service.lease_seconds` is 20."""

_CALM_SEEDS = 3
"""Collections that schedules choose from, so that few calm runs serve many schedules."""

_NOISE = 0.02
"""Share of the user simulator's requests that fail in every schedule but the calm one."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault."""

    target: str
    """One of `TARGETS`, or `user`: the user simulator's endpoint."""
    after: int
    """It comes when so many trajectories were delivered or reported."""
    delay: float = 0.0
    """So many seconds later still."""
    how: str = "KILL"
    """`KILL`; `STOP`, which halts the process; or, for the user simulator, one of `BEHAVIOURS`."""
    pick: int = 0
    """Which one of several processes: its position among them, modulo their number."""
    seconds: float | None = None
    """With `STOP`: when the process goes on; None: never. For the user simulator: how long all requests fare so."""
    requests: int = 0
    """For the user simulator: number of requests that fare so; 0: see `seconds`."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What one run asks for, and what happens to it."""

    kind: str
    seed: int
    episodes: int
    group_size: int
    selection: int
    """Seed of the collection: it determines tasks and episode seeds."""
    noise: float = 0.0
    """Share of the user simulator's requests that fail, drawn by their number."""
    faults: tuple[Fault, ...] = ()
    domains: tuple[tuple[str, float], ...] = DOMAINS

    @property
    def interrupts(self) -> bool:
        """Whether a fault may end the client's stream: its process dies or outsleeps its lease, or all of Ray dies."""
        return any(
            fault.target == "cluster"
            or (fault.target == "client" and (fault.seconds is None or fault.seconds > _LEASE))
            for fault in self.faults
        )

    @property
    def gives_up_none(self) -> bool:
        """Whether even a failure that is reported would be wrong: each episode can be played in the end."""
        return self.kind in ("storm", "outage")

    @property
    def name(self) -> str:
        """Kind and seed."""
        return f"{self.kind}-{self.seed}"

    @property
    def calm(self) -> Schedule:
        """The same collection without a fault."""
        return Schedule("calm", 0, self.episodes, self.group_size, self.selection, domains=self.domains)

    def to_json(self) -> str:
        """As text for a file."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Schedule:
        """The inverse of `dataclasses.asdict`."""
        faults = tuple(Fault(**fault) for fault in values["faults"])
        return cls(**values | {"faults": faults, "domains": tuple(map(tuple, values["domains"]))})


def make(kind: str, seed: int, episodes: int = 100, group_size: int = 2) -> Schedule:
    """The schedule of that kind and seed.

    Args:
        kind: a key of `KINDS`.
        episodes: a multiple of the group size.
    """
    rng = random.Random(f"chaos:{kind}:{seed}")
    selection, noise = rng.randrange(_CALM_SEEDS), _NOISE
    faults = tuple(sorted(KINDS[kind](rng, episodes), key=lambda fault: (fault.after, fault.delay)))
    return Schedule(kind, seed, episodes, group_size, selection, noise, faults)


def _moment(rng: random.Random, episodes: int) -> int:
    """When a fault comes: also before the first delivery, and never when nearly all is done."""
    return rng.randrange(int(episodes * 0.8) + 1)


def _kills(target: str, rng: random.Random, episodes: int) -> Iterator[Fault]:
    """One kill, several at different times, several at once, or one every few seconds."""
    pattern = rng.choice(("one", "some", "together", "series"))
    if pattern == "one":
        yield Fault(target, _moment(rng, episodes), pick=rng.randrange(8))
    elif pattern == "some":
        for _ in range(rng.randint(2, 4)):
            yield Fault(target, _moment(rng, episodes), pick=rng.randrange(8))
    elif pattern == "together":
        after = _moment(rng, episodes)
        yield from (Fault(target, after, pick=pick) for pick in (0, 0))
    else:
        after, every = _moment(rng, episodes), rng.choice((3.0, 5.0, 8.0))
        yield from (Fault(target, after, every * turn, pick=rng.randrange(8)) for turn in range(3))


def _few_kills(target: str, rng: random.Random, episodes: int) -> Iterator[Fault]:
    """One or two kills of something that there is one of."""
    for _ in range(rng.randint(1, 2)):
        yield Fault(target, _moment(rng, episodes))


def _coordinator(rng: random.Random, episodes: int) -> Iterator[Fault]:
    """The coordinator dies after the first delivery: a request that it has not answered may be refused."""
    yield from (replace(fault, after=max(1, fault.after)) for fault in _few_kills("coordinator", rng, episodes))


def _user(rng: random.Random, episodes: int) -> Iterator[Fault]:
    """Bursts of failing requests, each of one kind."""
    for _ in range(rng.randint(2, 5)):
        how = rng.choice(BEHAVIOURS)
        most = 3 if how == "hang" else 40
        yield Fault("user", _moment(rng, episodes), how=how, requests=rng.randint(1, most))


def _hang(rng: random.Random, episodes: int) -> Iterator[Fault]:
    """A process is halted, for a while or for good."""
    target = rng.choice(("actor", "actor", "replica"))
    seconds = rng.choice((1.0, 5.0, None))
    yield Fault(target, _moment(rng, episodes), how="STOP", pick=rng.randrange(8), seconds=seconds)


def _asleep(rng: random.Random, episodes: int) -> Iterator[Fault]:
    """The client's machine sleeps, as a closed laptop does: for less than the client's lease, or for longer."""
    yield Fault("client", _moment(rng, episodes), how="STOP", seconds=rng.choice((2.0, 6.0, 30.0)))


def _mixed(rng: random.Random, episodes: int) -> Iterator[Fault]:
    """Faults of several kinds in one collection."""
    for kind in rng.sample(("actor", "replica", "controller", "user"), k=rng.randint(2, 3)):
        yield from KINDS[kind](rng, episodes)


def _storm(rng: random.Random, episodes: int) -> Iterator[Fault]:
    """An environment actor is killed every 5 s for a minute, the oldest first."""
    yield from (Fault("actor", 1, delay=5.0 * turn) for turn in range(12))


def _outage(rng: random.Random, episodes: int) -> Iterator[Fault]:
    """The user simulator's endpoint is down for a minute."""
    how = rng.choice(("status 503", "status 500", "rate limited", "web_page"))
    yield Fault("user", _moment(rng, episodes // 2), how=how, seconds=60.0)


KINDS = {
    "actor": lambda rng, episodes: _kills("actor", rng, episodes),
    "replica": lambda rng, episodes: _kills("replica", rng, episodes),
    "user": _user,
    "controller": lambda rng, episodes: _few_kills("controller", rng, episodes),
    "mixed": _mixed,
    "hang": _hang,
    "client": lambda rng, episodes: _few_kills("client", rng, episodes),
    "asleep": _asleep,
    "coordinator": _coordinator,
    "cluster": lambda rng, episodes: _few_kills("cluster", rng, episodes),
    "storm": _storm,
    "outage": _outage,
    "engine": lambda rng, episodes: _kills("engine", rng, episodes),
}
"""Kinds of schedules: each makes the faults of one."""

KINDS_OF_ENGINE = {
    "scripted": [kind for kind in KINDS if kind not in ("storm", "outage", "engine")],
    "sglang": ["replica", "engine"],
}
"""The kinds that take turns where none are named: those that take no minutes, and whose processes the engine has."""
