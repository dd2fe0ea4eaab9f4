"""once: a cache for functions that are expensive and that several threads may call at the same time.

Invariant: for the same arguments the function runs once. A thread that calls meanwhile waits for the result.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def once(make: Callable[P, T]) -> Callable[P, T]:
    """Like `functools.cache`, but threads that call at the same time do not all run the function."""
    cached = functools.cache(make)
    lock = threading.RLock()

    @functools.wraps(make)
    def get(*args: P.args, **kwargs: P.kwargs) -> T:
        with lock:
            return cached(*args, **kwargs)  # type: ignore[arg-type]

    return get
