"""A continuous batch: turns that are sampled together, one token each per step, joining and leaving between any two.

Invariant: what a turn reuses of others' keys and values is of the very tokens that it has, from the first on, and of no
older weights than it allows. So what runs beside a turn changes when a token is sampled, never the distribution that it
is sampled from. A turn that the model fails on ends alone: those that ran beside it go on.

For one thread; only `Turn.done` is shared, and `occupancy` may be asked by another.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from deploy.engines.cache_hits import CacheHits
from deploy.engines.packed import Context, PackedModel, sample
from rollout_service.config.sampling import Sampling
from rollout_service.policy.base import Generation
from rollout_service.policy.replicas import Occupancy

_MAX_RUNNING = 64
"""Largest number of turns that share a step; more wait."""

_STEP_TOKENS = 512
"""Most tokens fed in one step. A long prompt takes several steps, so the other turns go on meanwhile. More than
`_MAX_RUNNING`, so every running turn can get a token in each step."""

_KEPT = 256
"""Most ended turns in the prefix cache. Each of them is compared with every new prompt."""


@dataclass(slots=True, eq=False)
class Turn:
    """A request and the tokens sampled for it."""

    context: Context
    """The prompt, followed by the sampled tokens."""
    prompt: int
    """Number of tokens of the prompt."""
    sampling: Sampling
    stops: frozenset[int]
    """Tokens that end the turn."""
    since: int | None = None
    """Oldest version whose keys and values the turn may reuse; None: the version at its first step."""
    done: Future[Generation] = field(default_factory=Future)
    """The result. Cancelling it drops the turn."""
    cached: int = 0
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    asked: float = field(default_factory=lambda: time.perf_counter())
    """When the turn was asked for."""
    queue_seconds: float | None = None
    """Seconds from then to the turn's first step; None: it waits."""

    @property
    def pending(self) -> int:
        """Number of tokens that the model has not seen: one, unless part of the prompt is left."""
        return self.context.size - self.context.seen

    def begin(self) -> None:
        """Note that the turn waits no longer, at its first step and if it ends without one."""
        if self.queue_seconds is None:
            self.queue_seconds = time.perf_counter() - self.asked

    def take(self, token: int, logprob: float, version: int) -> str | None:
        """Add a sampled token. Returns the finish reason if the turn ends with it."""
        self.context.append(token)
        self.logprobs.append(logprob)
        self.versions.append(version)
        if token in self.stops:
            return "stop"
        return "length" if len(self.logprobs) == self.sampling.max_new_tokens else None

    def finish(self, reason: str) -> None:
        """Complete `done` with the sampled tokens."""
        self.begin()
        if self.done.set_running_or_notify_cancel():
            self.done.set_result(
                Generation(
                    token_ids=self.context.since(self.prompt).copy(),
                    logprobs=np.array(self.logprobs, dtype=np.float32),
                    weight_versions=np.array(self.versions, dtype=np.int32),
                    finish_reason=reason,
                    prompt_tokens=self.prompt,
                    cached_tokens=self.cached,
                    prefix_version=self.context.oldest,
                    queue_seconds=self.queue_seconds,
                )
            )

    def fail(self, error: BaseException) -> None:
        """Complete `done` with an error."""
        if self.done.set_running_or_notify_cancel():
            self.done.set_exception(error)


class Batch:
    """Running turns, waiting turns, and the keys and values of ended turns, which later prompts reuse."""

    def __init__(self, model: PackedModel, room: int) -> None:
        """Begin empty.

        Args:
            room: bytes for keys and values. A new turn waits until its prompt fits, but one turn always runs, and
                running turns may grow beyond this. Ended turns get what is left.
        """
        self._model = model
        self._room = room
        self._waiting: deque[Turn] = deque()
        self._running: list[Turn] = []
        self._kept: deque[Context] = deque()
        """Contexts of ended turns, least recently used first. With those of running turns they are the prefix cache."""
        self._hits = CacheHits()

    def __len__(self) -> int:
        """Number of running and waiting turns."""
        return len(self._running) + len(self._waiting)

    def occupancy(self) -> Occupancy:
        """How full the batch is. Another thread may ask: it looks at copies."""
        used = sum(turn.context.bytes for turn in self._running.copy())
        return Occupancy(len(self._waiting), min(1.0, used / self._room), self._hits.share)

    def add(self, turn: Turn) -> None:
        """Let a turn join at the next step, or when there is room."""
        self._waiting.append(turn)

    def step(self, version: int) -> None:
        """Feed the running turns, and sample a token for each turn whose whole context has been fed.

        A turn on which the model fails ends with the error.

        Args:
            version: version of the model's weights.

        Raises:
            Exception: the device can do nothing any more.
        """
        self._admit()
        if not self._running:
            return
        try:
            self._advance(self._portions(version), version)
        except Exception:
            self._kept.clear()  # memory may be short
            self._model.check_device()
            for turn in self._running.copy():  # one by one, to find the turn that failed
                self._advance_alone(turn, version)

    def _advance_alone(self, turn: Turn, version: int) -> None:
        turn.context.rewind()
        try:
            self._advance([(turn, min(turn.pending, _STEP_TOKENS))], version)
        except Exception as error:
            self._running.remove(turn)
            turn.fail(error)
            self._model.check_device()

    def _advance(self, fed: list[tuple[Turn, int]], version: int) -> None:
        logits = self._model.forward([(turn.context, count) for turn, count in fed])
        for turn, _ in fed:
            turn.context.computed_by(version)
        ready = [turn for turn, _ in fed if not turn.pending]
        sampled = sample(logits, [turn.sampling for turn in ready])
        for turn, token, logprob in zip(ready, *sampled, strict=True):
            reason = turn.take(token, logprob, version)
            if reason:
                self._running.remove(turn)
                self._retire(turn, reason)

    def interrupt(self) -> None:
        """End every turn with the tokens that it has and the finish reason `abort`."""
        for turn in self._emptied():
            self._retire(turn, "abort")

    def fail(self, error: BaseException) -> None:
        """End every turn with an error."""
        for turn in self._emptied():
            turn.fail(error)

    def forget(self) -> None:
        """Drop all keys and values. Running turns are fed again from their first token on."""
        self._kept.clear()
        for turn in self._running:
            turn.context.forget()

    def _emptied(self) -> list[Turn]:
        turns = [*self._running, *self._waiting]
        self._running.clear()
        self._waiting.clear()
        return turns

    def _admit(self) -> None:
        """Drop cancelled turns, and let waiting ones run while there is room."""
        self._running = [turn for turn in self._running if not turn.done.cancelled()]
        if not self._waiting:
            return
        taken = sum(map(self._bytes, self._running))
        while self._waiting and len(self._running) < _MAX_RUNNING:
            turn = self._waiting[0]
            if not turn.done.cancelled():
                taken += self._bytes(turn)
                if self._running and taken > self._room:
                    break
                self._running.append(turn)
            self._waiting.popleft()

    def _bytes(self, turn: Turn) -> int:
        """Bytes that the turn's keys and values take once its whole context has been fed."""
        return max(turn.context.bytes, turn.context.size * self._model.token_bytes)

    def _portions(self, version: int) -> list[tuple[Turn, int]]:
        """Choose the turns to feed in this step, and how many tokens of each: those that need one first, then by age.

        A prompt's prefix is looked up when its turn comes, not before: turns of one group begin alike, and most find
        what the first of them has just computed.
        """
        portions = []
        room = _STEP_TOKENS
        for turn in sorted(self._running, key=lambda turn: turn.pending > 1):
            if not room:
                break
            if not turn.context.seen:
                self._reuse_prefix(turn, version)
            turn.begin()
            count = min(turn.pending, room)
            room -= count
            portions.append((turn, count))
        return portions

    def _reuse_prefix(self, turn: Turn, version: int) -> None:
        """Reuse the longest prefix that another turn has computed with weights that are not too old for this one."""
        since = version if turn.since is None else turn.since
        contexts = [*self._kept, *(other.context for other in self._running if other is not turn)]
        others = [context for context in contexts if context.oldest is not None and context.oldest >= since]
        best = max(others, key=turn.context.common, default=turn.context)
        count = turn.context.common(best)
        turn.cached = min(count, turn.prompt)
        if not count:
            return
        if best not in self._kept:
            turn.context.copy_seen(best, count)
            return
        self._kept.remove(best)
        if count == best.seen:  # the usual case: the next turn of a session
            turn.context.take_seen(best)
        else:
            turn.context.copy_seen(best, count)
            self._kept.append(best)

    def _retire(self, turn: Turn, reason: str) -> None:
        """Complete a turn that no longer runs, and keep its context."""
        turn.finish(reason)
        self._hits.add(turn.cached, turn.prompt)
        self._kept.append(turn.context)
        size = sum(context.bytes for context in self._kept) + sum(turn.context.bytes for turn in self._running)
        while self._kept and (size > self._room or len(self._kept) > _KEPT):
            size -= self._kept.popleft().bytes
