"""One definition for callers that block and for callers on an event loop.

Invariant: a method is written once, as a coroutine, over waits that know both ways, such as `cluster.answer`. On an
event loop it is awaited. Its blocking twin runs it to its end in the caller's own thread, where each wait blocks. So
the twin needs no thread and no loop: it works where a loop is running already, and Ctrl-C interrupts the wait itself.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from typing import Any, Concatenate, ParamSpec, TypeVar

S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")

_blocks: ContextVar[bool] = ContextVar("blocks", default=False)


def blocks() -> bool:
    """Whether a wait must block its thread, because no event loop awaits it."""
    return _blocks.get()


async def pause(seconds: float) -> None:
    """Wait so long; in a blocking twin the wait blocks."""
    if blocks():
        time.sleep(seconds)  # noqa: ASYNC251
    else:
        await asyncio.sleep(seconds)


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run the coroutine to its end in this thread; every wait in it blocks.

    Raises:
        RuntimeError: it awaits something that only an event loop can wait for.
    """
    return copy_context().run(_run_blocking, coroutine)  # in a copy, so that no interrupt can leave the mark behind


def _run_blocking(coroutine: Coroutine[Any, Any, R]) -> R:
    _blocks.set(True)
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    finally:
        coroutine.close()
    raise RuntimeError("This coroutine waits for something that has no blocking form.")


def blocking(method: Callable[Concatenate[S, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[S, P], R]:
    """The blocking twin of an async method `aNAME`: called NAME, with the same arguments, docstring and errors."""

    @functools.wraps(method)
    def twin(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return run(method(self, *args, **kwargs))

    return _named(twin, method.__name__.removeprefix("a"))


def in_thread(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, R]]:
    """The async twin, called `aNAME`, of a method NAME whose work needs a thread from its beginning to its end."""

    @functools.wraps(method)
    async def twin(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    return _named(twin, f"a{method.__name__}")


def _named(twin: Any, name: str) -> Any:
    twin.__qualname__ = twin.__qualname__.removesuffix(twin.__name__) + name
    twin.__name__ = name
    return twin
