"""Breaker: pauses a collection while one fault that the episodes have in common stops them all.

Invariant: it opens only when faults of one kind ended `EPISODES_IN_A_ROW` episodes of at least two groups, or all that
are left of a collection of more, and no episode ended without a fault between them. While it is open, one episode is
tried after each pause, the pauses grow, and no attempt that this fault ends counts. An episode that ends without a
fault closes it. Where it ended all that are left, an attempt that the endpoint answers, and that fails all the same,
shows that the fault lies in these episodes: from then on every attempt counts. It knows no clock: the time is handed
in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rollout_service.collecting.retry import seconds_before_retry
from rollout_service.errors import Fault, FaultKind, ServiceError

EPISODES_IN_A_ROW = 5
"""Episodes that a fault ends in a row before it is taken for a common one."""

COMMON_KINDS = {FaultKind.POLICY, FaultKind.USER_SIMULATOR, FaultKind.EVALUATOR}
"""Faults of an endpoint that all episodes call. The other kinds lie in a task, or in one actor."""

_TAIL_SECONDS = 60.0
"""How long the last few episodes are spared while the endpoint answers none of them. An endpoint that refuses only
these episodes looks the same, so they must fail some day."""

_LEAST_TRIAL_SECONDS = 1.0
_LONGEST_TRIAL_SECONDS = 60.0
"""How long the one episode that is tried after a pause must last, at least and at most, before others follow it."""


@dataclass(slots=True)
class _Outage:
    """What is known of a common fault."""

    fault: Fault
    since: float
    """When it ended the first of them."""
    pauses: int = 0
    until: float = 0.0
    """End of the current pause."""
    trial: float | None = None
    """When the episode that is tried after the pause started."""
    quickest: float = math.inf
    """Seconds of the shortest attempt that it ended."""
    episodes: set[int] = field(default_factory=set)
    """Episodes that it ended."""
    is_tail: bool = False
    """These are the last few episodes of the collection, too few to tell a common fault for sure."""

    @property
    def trial_ends(self) -> float:
        """When the episode that is tried has lasted long enough for others to follow."""
        enough = min(max(2 * self.quickest, _LEAST_TRIAL_SECONDS), _LONGEST_TRIAL_SECONDS)
        return math.inf if self.trial is None else self.trial + enough


class Breaker:
    """Watches the ends of one collection's attempts. An episode's index is as in `Collection`."""

    def __init__(self, group_size: int, give_up_seconds: float | None) -> None:
        """
        Args:
            give_up_seconds: duration of a common fault after which `error` is set. None: nothing opens the breaker.
        """
        self._group_size = group_size
        self._watches = give_up_seconds is not None
        self._give_up_seconds = give_up_seconds or math.inf
        self._outage: _Outage | None = None
        self._had_success = False
        self.error: ServiceError | None = None
        """Why the collection cannot go on: the fault lasts for too long."""

    @property
    def is_open(self) -> bool:
        """Whether a common fault stops the collection."""
        return self._outage is not None and self._outage.pauses > 0

    @property
    def suspects(self) -> bool:
        """Whether the last faults may be the first ones of a common fault."""
        return self._outage is not None

    def may_be_first(self, fault: Fault) -> bool:
        """Whether the fault may be one of the first of a common fault: no episode has ended without one yet."""
        return self._outage is not None and fault.kind in COMMON_KINDS and not self._had_success

    @property
    def pauses(self) -> int:
        """Number of pauses that the current fault has caused; 0: none."""
        return 0 if self._outage is None else self._outage.pauses

    def told(self, now: float) -> str | None:
        """What stops the collection, when it is tried again, and the remedy, in words; None: nothing stops it."""
        outage = self._outage
        if outage is None or not outage.pauses:
            return None
        again = f"tried again in {outage.until - now:.0f} s" if now < outage.until else "one episode is tried now"
        fault = outage.fault
        said = f"{fault.error}: {fault.message.rstrip('.')}. {fault.kind.remedy.rstrip('.')}"
        when = f"{again}, given up after {self._give_up_seconds:g} s"
        return f"a fault of kind {fault.kind} ends every episode ({when}): {said}"

    def failed(
        self,
        episode: int,
        fault: Fault,
        started: float,
        now: float,
        left: int = EPISODES_IN_A_ROW,
        *,
        was_answered: bool = False,
    ) -> set[int] | None:
        """Note that a fault ended an attempt.

        Args:
            started: when the attempt started.
            left: number of episodes of the collection that are not done, with this one.
            was_answered: whether the endpoint whose fault it is had answered the attempt before.

        Returns:
            None: the attempt counts. Otherwise it does not, and neither do the last attempts of these episodes.
        """
        if fault.kind not in COMMON_KINDS or not self._watches:
            return None
        outage = self._outage
        if outage is None or outage.fault.kind is not fault.kind:
            if self.is_open:  # a straggler with another fault says nothing about the common one
                return None
            outage = self._outage = _Outage(fault, now)
        outage.fault = fault
        outage.quickest = min(outage.quickest, now - started)
        outage.episodes.add(episode)
        if not outage.pauses:
            if not self._is_common(outage, fault, left):
                return None
            self._pause(outage, now)
            return outage.episodes - {episode}
        if self._lies_in_the_last(outage, left, now, is_answered=was_answered and started >= outage.until):
            self._outage, self._watches = None, False
            return None
        if outage.trial is not None and started >= outage.trial:
            self._pause(outage, now)
        return set()

    def _is_common(self, outage: _Outage, fault: Fault, left: int) -> bool:
        if len(outage.episodes) >= EPISODES_IN_A_ROW:
            return len({episode // self._group_size for episode in outage.episodes}) > 1
        outage.is_tail = self._had_success and fault.retryable and len(outage.episodes) >= left
        return outage.is_tail

    def _lies_in_the_last(self, outage: _Outage, left: int, now: float, *, is_answered: bool) -> bool:
        """Whether the fault lies in the episodes that are left, and no longer in an endpoint."""
        if outage.is_tail and now - outage.since >= min(_TAIL_SECONDS, self._give_up_seconds):
            return True
        return is_answered and self._had_success and len(outage.episodes) >= left

    def _pause(self, outage: _Outage, now: float) -> None:
        if now - outage.since >= self._give_up_seconds:
            self.error = ServiceError(
                f"For {now - outage.since:.0f} s (service.give_up_seconds: {self._give_up_seconds:g}) every attempt "
                f"ended with a fault of kind {outage.fault.kind}: {outage.fault.error}: {outage.fault.message}",
                outage.fault.kind.remedy,
            )
        outage.pauses += 1
        outage.until = now + seconds_before_retry(outage.pauses)
        outage.trial = None

    def ended_otherwise(self) -> bool:
        """Note that an attempt ended without a fault. Returns whether this ends a pause."""
        was_open = self.is_open
        self._outage = None
        self._had_success = True
        return was_open

    def admits(self, now: float) -> bool:
        """Whether an episode may start."""
        outage = self._outage
        if outage is None or not outage.pauses:
            return True
        return outage.trial_ends <= now if outage.trial is not None else outage.until <= now

    def started(self, now: float) -> None:
        """Note that an episode starts."""
        if self._outage is not None and self._outage.pauses and self._outage.trial is None:
            self._outage.trial = now

    def wakes_at(self, now: float) -> float:
        """When `admits` will change by the passing of time alone; infinity: never."""
        outage = self._outage
        if outage is None or not outage.pauses:
            return math.inf
        change = outage.until if outage.trial is None else outage.trial_ends
        return change if change > now else math.inf
