"""once: a cache for what is costly to make and what threads ask for at once.

Invariant: for the same arguments the function runs once; whoever asks meanwhile waits for it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def once(make: Callable[P, T]) -> Callable[P, T]:
    """`functools.cache`, but threads that come at the same time do not all run the function."""
    cached = functools.cache(make)
    lock = threading.RLock()

    @functools.wraps(make)
    def get(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return cached(*args, **kwargs)  # type: ignore[arg-type]

    return get
