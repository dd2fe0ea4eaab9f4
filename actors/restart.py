"""Restart: whether this process is an actor that died before, and how it waits for others that are on their way back.

Invariant: Ray starts only those actors again whose service has a journal.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Awaitable, Callable

import ray

_BACK_SECONDS, _PAUSE_SECONDS = 300.0, 1.0
"""How long others may take to come back, and the time between two looks."""


def is_restarted() -> bool:
    """Whether this process is an actor that Ray started again after its death."""
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    with warnings.catch_warnings():  # Ray's own code warns there of another of its calls
        warnings.simplefilter("ignore")
        return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)


async def patiently(work: Callable[[], Awaitable[None]]) -> None:
    """Do what needs others, again and again until they are back.

    Raises:
        Exception: that of the last try.
    """
    deadline = time.monotonic() + _BACK_SECONDS
    while True:
        try:
            return await work()
        except Exception:  # whatever Ray says of one that is not there yet
            if time.monotonic() > deadline:
                raise
        await asyncio.sleep(_PAUSE_SECONDS)
