"""Controller: how many episodes may be in flight, by what the replicas say of their memory for keys and values.

Invariant: there is no limit while figures are missing or old, none before evictions cost time, and none below one
episode for each replica. Episodes that run are never stopped: a limit only keeps others from starting. It knows no
clock: the time is handed in, in seconds of a clock that never goes back.

An episode's prefix stays in the cache between its turns only while it fits beside those of the other episodes in
flight. Otherwise each turn evicts what the next turns need, and whole prefixes are computed again. How many fit is
estimated: the memory, less what all episodes share, divided by the tokens that an episode comes to have of its own.
That is the mean of those that ended of late, or that of the turns of late where it is more, as it is while the first
episodes run.

It may pay to compute prefixes again. Where users take long, or where a step of the engine takes as long for few turns
as for many, more episodes in flight are worth it. So the limit sinks only when the replicas spend much of their time on
evicted prefixes, and when the throughput to expect without that is higher, smaller batches included. It sinks to the
number that fits at once, or by a fifth if that was too many. Then nothing is judged before the episodes that are too
many have ended. It grows slowly, with each episode that ends, while it keeps episodes waiting and little time is lost:
episodes of different ages need less memory than the estimate says, so more of them fit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Literal

from rollout_service.policy.replicas import CacheFigures, Occupancy

STALE_SECONDS = 30.0
"""Age at which figures are too old to hold episodes back."""

_LATEST = 64
"""Number of ended episodes that count."""

_SPARE = 0.05
"""Share of the memory that is left for turns that are being sampled: an engine keeps room for their answers."""

_TURNS = 16
"""Turns of episodes that should find a prefix, after which the time that they cost says something."""

_MUCH, _LITTLE = 0.15, 0.05
"""Shares of the replicas' time that are spent on evicted prefixes: the limit sinks above the first, and grows below the
second."""

_WORTH = 1.1
"""Throughput to expect of a lower limit, as a multiple of what it is, from which on it is tried."""

_CUT = 0.8
"""What a shortage leaves of a limit that held too many."""

_TOO_MANY = 1.1
"""Episodes in flight, as a multiple of the limit, from which on the limit is not judged. It moves a little with the
lengths of those that end."""

_GROWTH, _PROBING = 0.5, 0.1
"""By how much the limit grows with each episode that ends: below one that failed, and from there on."""

_NEAR = 0.9
"""Share of a limit that failed up to which it grows faster."""

_LEAST_GAIN, _MOST_GAIN = 0.25, 8.0
"""Bounds of the limit, as a multiple of the episodes that fit by the estimate."""

_POSSIBLE = 0.5
"""Share of the memory that the episodes must need for missing prefixes to be a shortage. A replica that is lost, for
one, has its sessions compute theirs again elsewhere."""


class Controller:
    """The limit of one service."""

    def __init__(self) -> None:
        self._lengths: deque[int] = deque(maxlen=_LATEST)
        """Tokens of the contexts of the episodes that ended last."""
        self._seen: dict[str, CacheFigures] = {}
        """What each replica said last."""
        self._seen_at = -math.inf
        self._fitting: float | None = None
        """Episodes that fit by the estimate; None: not known."""
        self._gain = math.inf
        """The limit as a multiple of that; infinity: there is none."""
        self._failed = math.inf
        """The gain at the last shortage."""
        self.lost = 0.0
        """Share of the replicas' time that evicted prefixes took, as it was judged last, 0 to 1."""
        self._turns = self._ended = 0
        """Turns that should find a prefix, and episodes that ended, since the last judgement."""
        self._lost_seconds = self._replica_seconds = 0.0
        self._in_flight = self._inside = self._sampling = 0
        """Sums over the looks since then: episodes, turns in the replicas, and those of them that are sampled."""

    def ended(self, tokens: int) -> None:
        """Note that an episode ended with so many tokens in its context."""
        self._ended += 1
        if tokens > 0:
            self._lengths.append(tokens)

    def observe(self, replicas: Mapping[str, Occupancy | None], in_flight: int, now: float) -> int | None:
        """Take what the replicas say now.

        Args:
            replicas: what each one says, by its name. When one of them says nothing of its cache, nothing is known.
            in_flight: number of episodes that run.

        Returns:
            The number of episodes that may be in flight; None: any number.
        """
        figures = {name: each.cache for name, each in replicas.items() if each is not None and each.cache is not None}
        if not figures or len(figures) < len(replicas):
            return self.limit(now)
        if now - self._seen_at > STALE_SECONDS:  # what happened meanwhile is not known
            self._seen = {}
            self._begin_anew()
        self._fitting = self._estimate(figures)
        self._count(figures, now - self._seen_at)
        self._in_flight += in_flight
        self._seen, self._seen_at = figures, now
        limit = self.limit(now)
        if limit is not None and in_flight > _TOO_MANY * limit:  # what is missed now was evicted before the limit sank
            self._begin_anew()
        elif self._fitting is not None and self._turns >= _TURNS:
            self._judge(self._fitting, in_flight, limit)
        return self.limit(now)

    def limit(self, now: float) -> int | None:
        """Number of episodes that may be in flight; None: any number."""
        if self._fitting is None or math.isinf(self._gain) or now - self._seen_at > STALE_SECONDS:
            return None
        return max(len(self._seen), int(self._gain * self._fitting))

    @property
    def capacity(self) -> int:
        """Tokens that the replicas' memory holds, as they said last."""
        return sum(each.capacity for each in self._seen.values())

    @property
    def tokens_per_episode(self) -> float | None:
        """Tokens that an episode comes to have of its own; None: not known."""
        return None if self._fitting is None else _room(self._seen) / self._fitting

    def _estimate(self, figures: Mapping[str, CacheFigures]) -> float | None:
        """Episodes whose contexts fit; None: no turn was taken, so their length is not known."""
        if not any(each.latest_turns for each in figures.values()):
            return None
        running = _mean(figures, "context_tokens")
        ended = sum(self._lengths) / len(self._lengths) if self._lengths else 0.0
        return _room(figures) / max(1.0, max(running, ended) - _mean(figures, "shared_tokens"))

    def _count(self, figures: Mapping[str, CacheFigures], seconds: float) -> None:
        """Add what came since the replicas spoke last. A replica that is new has nothing to compare with."""
        for name, each in figures.items():
            last = self._seen.get(name)
            if last is not None and each.later_turns >= last.later_turns:
                self._turns += each.later_turns - last.later_turns
                self._lost_seconds += each.recompute_seconds - last.recompute_seconds
                self._replica_seconds += seconds
            self._inside += each.inside
            self._sampling += each.sampling

    def _judge(self, fitting: float, in_flight: int, limit: int | None) -> None:
        self.lost = lost = min(1.0, self._lost_seconds / max(1e-9, self._replica_seconds))
        used = in_flight / fitting  # the gain that those in flight stand for
        wanted = 1.0 if used > 1.0 else _CUT * used
        if used > _POSSIBLE and lost > _MUCH and self._throughput(wanted / used, lost) > _WORTH:
            self._failed = used
            self._gain = max(_LEAST_GAIN, wanted)
        elif limit is not None and in_flight >= limit and lost < max(_LITTLE, (1 - self._throughput(_CUT, 0.0)) / 2):
            step = _GROWTH if self._gain < _NEAR * self._failed else _PROBING
            self._gain = min(_MOST_GAIN, self._gain * (1 + step * self._ended / limit))
            self._failed = max(self._failed, self._gain)
        self._begin_anew()

    def _throughput(self, part: float, lost: float) -> float:
        """The throughput to expect with this part of the episodes in flight, as a multiple of what it is.

        The turns that each episode has in a second sink with the time that it spends with users and tools, which stays,
        and with that in the replica. There it would not wait for others' prompts, and a step of a smaller batch
        takes less time.

        Args:
            lost: share of the replicas' time that would not be lost any more, 0 to 1.
        """
        fixed = _mean(self._seen, "fixed_share")
        inside = min(1.0, self._inside / max(1, self._in_flight))
        waits = 1 - min(1.0, self._sampling / max(1, self._inside))
        batch = min(1.0, part / max(1e-9, 1 - waits))
        slower = (1 - lost) * (1 - waits) * (fixed + (1 - fixed) * batch)
        return part / max(1e-9, 1 - inside + inside * slower)

    def _begin_anew(self) -> None:
        self._turns = self._ended = self._inside = self._sampling = self._in_flight = 0
        self._lost_seconds = self._replica_seconds = 0.0


def _room(figures: Mapping[str, CacheFigures]) -> float:
    """Tokens that are there for what episodes do not share. Each replica has what they share once."""
    shared = _mean(figures, "shared_tokens")
    return sum(each.capacity * max(_SPARE, 1 - _SPARE - shared / each.capacity) for each in figures.values())


def _mean(
    figures: Mapping[str, CacheFigures], name: Literal["context_tokens", "shared_tokens", "fixed_share"]
) -> float:
    """Mean over the replicas, by the number of their latest turns."""
    turns = sum(each.latest_turns for each in figures.values())
    return sum(getattr(each, name) * each.latest_turns for each in figures.values()) / max(1, turns)
