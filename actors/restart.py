"""Restart: whether this process is an actor that died before.

Invariant: Ray starts only those actors again whose service has a journal.
"""

from __future__ import annotations

import warnings

import ray


def is_restarted() -> bool:
    """Whether this process is an actor that Ray started again after its death."""
    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    with warnings.catch_warnings():  # Ray's own code warns there of another of its calls
        warnings.simplefilter("ignore")
        return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)
