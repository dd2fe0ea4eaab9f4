"""Deadline: an episode's age, deadline and cancellation, for everything that waits in the episode's thread.

Invariant: a wait through it ends at the deadline at the latest, and soon after a cancellation. An episode is cancelled
as soon as it is known that it sampled with weights older than it may.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import TypeVar

from rollout_service.errors import EpisodeEnd
from rollout_service.termination import TerminationReason

T = TypeVar("T")

_CANCEL_POLL_SECONDS = 1.0
"""How late a waiting thread may notice that its episode was cancelled."""


class Deadline:
    """Tells how much time is left, waits no longer than that, and notices a cancellation."""

    def __init__(self, wall_seconds: float, collection_id: str = "") -> None:
        self.collection_id = collection_id
        self._start = time.monotonic()
        self._deadline = self._start + wall_seconds
        self.cancelled = threading.Event()
        self._min_version = 0
        self._oldest_version: int | None = None
        self._thread = 0
        """Identity of the episode's thread."""
        self.place = "the environment"
        """Where the episode is: what runs in it, or what it waits for."""

    @property
    def age(self) -> float:
        """Seconds since the episode got a slot."""
        return time.monotonic() - self._start

    @contextlib.contextmanager
    def within(self, place: str) -> Iterator[None]:
        """Within this context, the episode's place is `place`."""
        before, self.place = self.place, place
        try:
            yield
        finally:
            self.place = before

    def run(self, work: Callable[[], T]) -> T:
        """Run the episode's work in this thread, so that `stack` shows it."""
        self._thread = threading.get_ident()
        return work()

    def stack(self) -> str | None:
        """Where the episode's thread is now, as Python prints it. None: it does not run."""
        frame = sys._current_frames().get(self._thread)
        return None if frame is None else "".join(traceback.format_stack(frame))

    def require(self, min_version: int) -> None:
        """Cancel the episode if it sampled with weights older than this version, now or later."""
        self._min_version = max(self._min_version, min_version)
        self._cut()

    def sampled(self, oldest_version: int) -> None:
        """Note the oldest weight version of the episode so far, in its thread.

        Raises:
            EpisodeEnd: the episode can no longer be in time, or was cancelled.
        """
        self._oldest_version = oldest_version
        self._cut()
        if self.cancelled.is_set():
            raise EpisodeEnd(TerminationReason.CANCELLED)

    def _cut(self) -> None:
        """Called in both threads after each wrote its own number, so the later one of them sees both."""
        if self._oldest_version is not None and self._oldest_version < self._min_version:
            self.cancelled.set()

    def remaining(self) -> float:
        """Seconds left.

        Raises:
            EpisodeEnd: no time is left, or the episode was cancelled.
        """
        if self.cancelled.is_set():
            raise EpisodeEnd(TerminationReason.CANCELLED)
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise EpisodeEnd(TerminationReason.WALL_TIME)
        return left

    def sleep(self, seconds: float) -> None:
        """Wait that long, but not beyond the deadline or a cancellation.

        Raises:
            EpisodeEnd: the deadline came first, or the episode was cancelled.
        """
        self.cancelled.wait(min(seconds, self.remaining()))
        self.remaining()

    def bound(self, work: Callable[[], T], seconds: float) -> T:
        """Run `work` in a thread of its own and return its result. If it takes too long, the thread is abandoned. An
        HTTP client's timeout is not enough: it counts from the last byte, so a slow server could hold the episode
        forever.

        Raises:
            TimeoutError: it took longer than `seconds`.
            EpisodeEnd: the episode's time ran out first, or the episode was cancelled.
        """
        done: concurrent.futures.Future[T] = concurrent.futures.Future()
        done.set_running_or_notify_cancel()  # it cannot be cancelled

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="user-request", daemon=True).start()
        return self.result(done, seconds)

    def result(self, future: concurrent.futures.Future[T], seconds: float) -> T:
        """The future's result. It is cancelled if it does not come in time.

        Raises:
            TimeoutError: it took longer than `seconds`.
            EpisodeEnd: the episode's time ran out first, or the episode was cancelled.
        """
        give_up = time.monotonic() + seconds
        try:
            while True:
                wait = min(_CANCEL_POLL_SECONDS, self.remaining(), max(0.0, give_up - time.monotonic()))
                with contextlib.suppress(TimeoutError):
                    return future.result(wait)
                if future.done():  # it came just now, or it raised this error
                    return future.result()
                if time.monotonic() >= give_up:
                    raise TimeoutError(f"no answer in {seconds:g} s")
        finally:
            future.cancel()
