"""The user of an episode: the agent's partner in the conversation.

Invariant: litellm is imported only if the user is a language model, see `llm_user`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rollout_service.config import User
from rollout_service.errors import Tau2Error
from rollout_service.record.trajectory import UserUsage
from rollout_service.tau2 import compat
from rollout_service.tau2.deadline import Deadline
from rollout_service.tau2.scripted_user import ScriptedUser

if TYPE_CHECKING:
    from rollout_service.tau2.model_calls import ModelCalls


def make(
    kind: str,
    task: compat.Task,
    tools: list[Any] | None,
    config: User,
    seed: int,
    usage: UserUsage,
    deadline: Deadline,
    calls: Callable[[], ModelCalls] | None = None,
) -> Any:
    """The user of one episode: `dummy` (solo agent), `scripted` or `llm`.

    Args:
        calls: makes what an `llm` user asks its model through; None: without a tape.

    Raises:
        ConfigError: the key's environment variable is not set.
        Tau2Error: unknown kind.
    """
    if kind == "dummy":
        return compat.dummy_user()
    if kind == "scripted":
        return ScriptedUser(task, tools, config, seed, deadline)
    if kind == "llm":
        from rollout_service.tau2.llm_user import ReliableUserSimulator

        return ReliableUserSimulator(task, tools, config, usage, deadline, calls() if calls else None)
    raise Tau2Error(f"user.kind: {kind!r} is unknown.", "Choose scripted or llm.")


def watched(user: Any, turn: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    """Make each turn of `user` run within the context `turn()`."""
    generate = user.generate_next_message

    def generate_next_message(message: Any, state: Any) -> Any:
        with turn():
            return generate(message, state)

    user.generate_next_message = generate_next_message
