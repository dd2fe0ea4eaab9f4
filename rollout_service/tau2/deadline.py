"""Clock: an episode's age, deadline and cancellation, for whatever waits in the episode's thread.

Invariant: nothing that waits through it waits beyond the deadline, or long after a cancellation.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from rollout_service.errors import EpisodeEnd

T = TypeVar("T")

_CANCEL_POLL_SECONDS = 1.0
"""How late a waiting thread may notice that its episode was cancelled."""


class Deadline:
    """Says how long is left, waits no longer than that, and carries the cancellation."""

    def __init__(self, wall_seconds: float) -> None:
        self._start = time.monotonic()
        self._deadline = self._start + wall_seconds
        self.cancelled = threading.Event()
        self.place = "the environment"
        """What the episode is in, or waits for."""

    @property
    def age(self) -> float:
        """Seconds since the episode was given a slot."""
        return time.monotonic() - self._start

    @contextlib.contextmanager
    def within(self, place: str) -> Iterator[None]:
        """Say that the episode is in `place` for as long as this is open."""
        before, self.place = self.place, place
        try:
            yield
        finally:
            self.place = before

    def remaining(self) -> float:
        """Seconds left.

        Raises:
            EpisodeEnd: none is left, or the episode was cancelled.
        """
        if self.cancelled.is_set():
            raise EpisodeEnd("cancelled")
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise EpisodeEnd("wall_time")
        return left

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the deadline or a cancellation."""
        self.cancelled.wait(min(seconds, self.remaining()))
        self.remaining()

    def bound(self, work: Callable[[], T], seconds: float) -> T:
        """What `work` returns. It runs in a thread of its own, which is left behind when it takes too long: an HTTP
        client's timeout counts from the last byte, so a server that drips would hold the episode for ever.

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
                if concurrent.futures.wait([future], wait).done:
                    return future.result()
                if time.monotonic() >= give_up:
                    raise TimeoutError(f"no answer in {seconds:g} s")
        finally:
            future.cancel()
