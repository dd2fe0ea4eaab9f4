"""Official τ² environments, made the official way: each one parses the domain's files again.

Invariant: an environment belongs to one episode. Every environment of the service is made here, for play, evaluation
and replay, and all of them answer a call in the same way. They are the official ones, with five differences:

* Calls are bounded in time and memory (`arithmetic`, and the limits below). A call beyond the bounds gets an error, as
  τ² answers every call that fails.
* A call has the same arguments as its record, so that the record replays. (JSON has no NaN.)
* An id that a tool draws follows from the call (`draws`).
* An assertion that raises during scoring is noted, and counts as not met.
* A call of the agent that changes a database is noted, except in the environments that τ²'s evaluator makes.

`rollout_service.tau2.domain` makes the same environments at a lower cost.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from rollout_service.config.tasks import Retrieval
from rollout_service.errors import EpisodeEnd, EpisodeFault, RolloutError, Tau2Error
from rollout_service.tau2 import arithmetic, compat
from rollout_service.tau2.database_watch import DatabaseWatch
from rollout_service.tau2.draws import Draws
from rollout_service.tau2.once import once

_MOST_BITS = 14_250
"""Largest integer in a call's arguments: 4,290 decimal digits. Python prints at most 4,300. τ²'s tools compute prices
from such numbers, and a larger one could be neither in the tool's answer nor in the database's hash."""

_MOST_ANSWERED = 2**23
"""After this many characters of answers, an environment's tools answer only errors. No policy's context holds as many,
but a single turn could ask for gigabytes: `search_onestop_flight` without places answers 1.6 million, for 40 tokens."""

_OURS = (EpisodeEnd, EpisodeFault, RolloutError, MemoryError, OSError)
"""Errors that the policy cannot cause."""

Raised = list[tuple[Any, Exception]]
"""Assertions that raised, each with its exception."""

_raised: ContextVar[Raised | None] = ContextVar("raised", default=None)


@contextmanager
def noting_assertions() -> Iterator[Raised]:
    """Within this context, an assertion that raises counts as not met and is added to the list."""
    noted: Raised = []
    token = _raised.set(noted)
    try:
        yield noted
    finally:
        _raised.reset(token)


class EpisodeEnvironment(compat.Environment):  # type: ignore[misc]
    """Mixed into a domain's own class of environment."""

    draws: Draws
    notes_writes = True
    """Whether `wrote` is wanted. To watch a database takes longer than most calls."""
    wrote: set[str]
    """Ids of the agent's calls that changed the contents of a database. Only tools that τ² declares as writing are
    looked at."""
    answered = 0
    """Number of characters of all answers so far."""

    def get_response(self, message: compat.ToolCall) -> compat.ToolMessage:
        """The answer to a call. The call's arguments become those that its record will hold."""
        message.arguments = message.model_dump(mode="json")["arguments"]
        watches = self._watches(message)
        with self.draws.of("call", message.requestor, message.id, message.name):
            answer = super().get_response(message)
        if sum(watch.has_changed() for watch in watches):  # not any(), because each watch must end
            self.wrote.add(message.id)
        self.answered += len(answer.content or "")
        return answer

    def _watches(self, call: compat.ToolCall) -> list[DatabaseWatch]:
        """A watch of each database, if the call is the agent's and may change one."""
        if call.requestor != "assistant" or not self.notes_writes:
            return []
        kits = [kit for kit in (self.tools, self.user_tools) if kit is not None]
        called = kits if self.solo_mode else kits[:1]
        if not any(call.name in compat.writing_tools(kit) for kit in called):
            return []
        databases = {id(kit.db): kit.db for kit in kits if kit.db is not None}
        return [DatabaseWatch(database) for database in databases.values()]

    @functools.wraps(compat.Environment.make_tool_call)  # an answer to a call with too many arguments shows its name
    def make_tool_call(self, *args: Any, **arguments: Any) -> Any:
        """The tool's result.

        Raises:
            ValueError: the call would take too long, or make a number that cannot be printed; or the tools have
                answered enough.
            Exception: whatever the tool raises.
        """
        if self.answered > _MOST_ANSWERED:
            raise ValueError("Too many results")
        if any(map(_is_too_long, _values(arguments))):
            raise ValueError("Number is too large")
        make = functools.partial(super().make_tool_call, *args, **arguments)
        expression = arguments.get("expression")
        with self.draws.of("gold action"):
            if "calculate" not in (*args[:1], arguments.get("tool_name")) or not isinstance(expression, str):
                return make()
            if not arithmetic.is_deep(expression):
                return _calculated(make, expression)
            with ThreadPoolExecutor(1) as thread:  # a new stack has the same depth in every replay
                return thread.submit(_calculated, make, expression).result()

    def run_env_function_call(self, env_function_call: Any) -> Any:
        """The result of a function of one of the toolkits."""
        with self.draws.of("function", env_function_call.func_name):
            return super().run_env_function_call(env_function_call)

    def run_env_assertion(self, assertion: Any, raise_assertion_error: bool = True) -> bool:
        """Whether the assertion is met; see `noting_assertions`."""
        noted = _raised.get()
        try:
            return bool(super().run_env_assertion(assertion, raise_assertion_error=raise_assertion_error))
        except _OURS:
            raise
        except Exception as error:
            if noted is None:
                raise
            noted.append((assertion, error))
            return False


def _calculated(make: functools.partial[Any], expression: str) -> Any:
    if set(expression) <= set("0123456789+-*/(). "):
        arithmetic.check_cost(expression)
    return make()


def _is_too_long(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > _MOST_BITS


def _values(value: Any) -> Iterator[Any]:
    """The values inside the lists and dicts of a JSON value."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _values(item)
    else:
        yield value


@functools.cache
def _class(kind: Any) -> Any:
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (EpisodeEnvironment, kind), names)


def make(
    domain: str,
    *,
    solo: bool = False,
    task: compat.Task | None = None,
    retrieval: Retrieval | None = None,
    **databases: Any,
) -> compat.Environment:
    """A new official environment of the domain.

    Args:
        task, retrieval: see `compat.environment_arguments`.
        databases: `db` and `user_db`, for domains whose constructor takes them.

    Raises:
        Tau2Error: the domain has no solo mode.
    """
    constructor = compat.registry.get_env_constructor(domain)
    others = compat.environment_arguments(domain, task, retrieval) | databases
    try:
        world = constructor(solo_mode=True, **others) if solo else constructor(**others)
    except ValueError as error:
        if not solo:
            raise
        raise Tau2Error(
            f"agent: the domain {domain} has no solo mode.", "Use mock or telecom, or agent llm."
        ) from error
    kind: Any = type(world)
    if not isinstance(world, EpisodeEnvironment):
        world.__class__ = _class(kind)
    world.draws = Draws()
    world.wrote = set()
    return world


@once
def registered(domain: str) -> str:
    """The name under which τ²'s registry, and so its evaluator, finds the environments that `make` makes."""
    name = f"rollout_service:{domain}"

    def made(solo_mode: bool = False, **others: Any) -> compat.Environment:
        world = make(domain, solo=solo_mode, **others)
        world.notes_writes = False  # the evaluator only compares the databases' final contents
        return world

    compat.registry.register_domain(made, name)
    return name


def database_hashes(environment: compat.Environment) -> dict[str, str | None]:
    """τ²'s own hashes of the environment's two databases."""
    return {"assistant": environment.get_db_hash(), "user": environment.get_user_db_hash()}
