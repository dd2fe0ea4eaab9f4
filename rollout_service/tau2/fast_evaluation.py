"""Fast evaluation: the official evaluator, on environments that are already in the states that it would replay.

Invariant: every rule of scoring is the official evaluator's own code. Only two steps are skipped:

* replaying the conversation in a fresh environment: the episode's own environment is already in the resulting state;
* playing the task's gold actions: their end state is the same for every episode of the task.

If `leads_to` cannot show that a replay would lead to the same state, the caller evaluates the official way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from rollout_service.tau2 import compat
from rollout_service.tau2.domain import Domain, EndState
from rollout_service.tau2.overlay import OverlayDict

DOMAIN = "rollout_service:played"
"""The official evaluator finds the environments of `case` under this name."""

Hashes = dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Case:
    """One conversation to be scored."""

    environment: compat.Environment
    """The episode's own, at its end."""
    hashes: Hashes
    """Hashes of its databases."""
    gold: Callable[[], Hashes]
    """Gives the hashes of the databases after the task's gold actions."""
    messages: list[compat.Message]


case: ContextVar[Case] = ContextVar("case")


class _Played:
    """Stands for both environments that the official evaluator makes. What is replayed in it shows which one it is."""

    def __init__(self, **_: Any) -> None:
        self._case = case.get()
        self._is_gold = True
        self.tools = self._case.environment.tools
        self.user_tools = self._case.environment.user_tools

    def set_state(self, initialization_data: Any, initialization_actions: Any, message_history: Any, **_: Any) -> None:
        if list(map(id, message_history)) == list(map(id, self._case.messages)):
            self._is_gold = False

    def make_tool_call(self, **_: Any) -> None:
        """A gold action. It was played already."""

    def get_db_hash(self) -> str | None:
        return self._hashes()["assistant"]

    def get_user_db_hash(self) -> str | None:
        return self._hashes()["user"]

    def _hashes(self) -> Hashes:
        return self._case.gold() if self._is_gold else self._case.hashes

    def run_env_assertion(self, assertion: Any, raise_assertion_error: bool = True) -> bool:
        return bool(self._case.environment.run_env_assertion(assertion, raise_assertion_error=raise_assertion_error))


compat.registry.register_domain(_Played, DOMAIN)

_gold: dict[tuple[str, int], tuple[compat.Task, Hashes]] = {}
"""By domain and the task's identity. The task is kept, so that no other object gets its identity."""


def gold_hashes(domain: Domain, task: compat.Task) -> Hashes:
    """Hashes of the databases in the gold end state of this task."""
    key = domain.name, id(task)
    if key not in _gold:
        _gold[key] = task, domain.end_state(play_gold(domain.original(task=task), task)).hashes
    return _gold[key][1]


def play_gold(world: compat.Environment, task: compat.Task, *, actions: bool = True) -> compat.Environment:
    """Play the task's gold actions in a new environment, as the official evaluator does, and return it.

    Args:
        actions: False: stop before them, in the task's initial state.
    """
    initial = task.initial_state
    world.set_state(
        initialization_data=initial.initialization_data if initial else None,
        initialization_actions=initial.initialization_actions if initial else None,
        message_history=(initial.message_history or []) if initial else [],
    )
    for action in (task.evaluation_criteria.actions or []) if actions and task.evaluation_criteria else []:
        try:
            world.make_tool_call(tool_name=action.name, requestor=action.requestor, **action.arguments)
        except Exception:  # an action that fails changes nothing, as in the official evaluator
            continue
    return world


def leads_to(messages: list[compat.Message], end: EndState, live: list[compat.Message], *, solo: bool) -> bool:
    """Whether replaying the messages must lead to the state in which the episode ended.

    It must if each call is followed by its result, and no argument of a call became part of the database. (A later
    change in the database would otherwise change the message.)

    Args:
        live: the orchestrator's own messages, of which `messages` are copies.
    """
    waiting: list[str] = []
    for message in messages:
        if isinstance(message, compat.ToolMessage):
            if not waiting or waiting.pop(0) != message.id:
                return False
        elif waiting or (solo and isinstance(message, compat.UserMessage)):
            return False
        elif message.is_tool_call():
            waiting = [call.id for call in message.tool_calls]
    calls = [
        call for message in live if not isinstance(message, compat.ToolMessage) for call in message.tool_calls or []
    ]
    arguments = {id(part) for call in calls for value in call.arguments.values() for part in _containers(value)}
    if waiting:
        return False
    return not arguments or arguments.isdisjoint([id(part) for part in _containers(end.own)])


def _containers(value: Any) -> Iterator[Any]:
    """Every mutable list, dict and model inside the value, without those that an overlay still shares."""
    parts: Iterable[Any]
    if isinstance(value, OverlayDict):
        parts = [dict.__getitem__(value, key) for key in value.touched if key in value]
    elif isinstance(value, dict):
        parts = value.values()
    elif isinstance(value, BaseModel):
        parts = value.__dict__.values()
    elif isinstance(value, list | tuple | set):
        parts = value
    else:
        return
    yield value
    for part in parts:
        yield from _containers(part)
