"""Domain: what all episodes of one τ² domain share in a process.

Invariant: the domain's files are parsed once. Each episode's environment is built by the official constructor, on
overlays of the parsed databases. If such an environment cannot be shown to equal the official one, the domain gets
official environments.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

import rollout_service.logs as logs
from rollout_service.config.tasks import Retrieval
from rollout_service.tau2 import compat, environment, source_files
from rollout_service.tau2.base_database import BaseDatabase
from rollout_service.tau2.once import once

_PARITY_DOMAINS = {"mock", "airline", "retail", "telecom", "telecom-workflow"}
"""Domains for which `tests/parity.py` shows that fast and official evaluation agree."""

_log = logs.logger(__name__)


def get(name: str, retrieval: Retrieval | None = None) -> Domain:
    """The domain. The first call in a process parses it.

    Args:
        retrieval: how its agent searches documents, where the domain has any, see `compat.environment_arguments`.
    """
    return _get(name, retrieval if name == compat.SEARCHED else None)


@once
def _get(name: str, retrieval: Retrieval | None) -> Domain:
    return Domain(name, retrieval)


@dataclass(frozen=True, slots=True)
class EndState:
    """The state of an environment when its episode is over."""

    hashes: dict[str, str | None]
    """τ²'s own hashes of the two databases, `assistant` and `user`."""
    own: list[Any]
    """The parts of the databases that the episode made, which may hold objects of its messages."""


class _UserTool:
    """What a user simulator needs of one of τ²'s tools. Their own schemas are made anew each time that they are read,
    which was a third of the CPU time of a request of telecom's user."""

    def __init__(self, tool: Any) -> None:
        self.name: str = tool.name
        self._schema = json.dumps(tool.openai_schema)

    @property
    def openai_schema(self) -> dict[str, Any]:
        """The schema for OpenAI's API. The caller's own: litellm changes it for some providers."""
        schema: dict[str, Any] = json.loads(self._schema)
        return schema


class Domain:
    """A domain's parsed databases, tools and data files. Thread-safe."""

    def __init__(self, name: str, retrieval: Retrieval | None = None) -> None:
        self.name = name
        self.retrieval = retrieval
        self.files = source_files.of(name)
        self._bases: dict[str, BaseDatabase] = {}
        try:
            self._bases = self._parse()
        except TypeError as error:
            _log.warning(
                "The τ² domain %s is played and scored the official way, which is slow: %s.",
                name,
                error,
            )

    @property
    def is_fast(self) -> bool:
        """Whether episodes get overlays; otherwise everything is official."""
        return bool(self._bases)

    def _parse(self) -> dict[str, BaseDatabase]:
        """The base databases, by the constructor's argument names.

        Raises:
            TypeError: this domain's databases cannot be shared; says why.
        """
        if self.name not in _PARITY_DOMAINS:
            raise TypeError("no parity test covers it")
        official = environment.make(self.name, retrieval=self.retrieval)
        takes = inspect.signature(compat.registry.get_env_constructor(self.name)).parameters
        kits = {"db": official.tools, "user_db": official.user_tools}
        databases = {name: kit.db for name, kit in kits.items() if kit is not None and kit.db is not None}
        for name, database in databases.items():
            if name not in takes:
                raise TypeError(f"its constructor takes no {name}")
            if not isinstance(database, BaseModel):
                raise TypeError(f"its {name} is a {type(database).__name__}")
        hashes = environment.database_hashes(official)
        bases = {name: BaseDatabase(database) for name, database in databases.items()}
        if not bases:
            raise TypeError("it has no database")
        fast = environment.make(self.name, **{name: base.overlay() for name, base in bases.items()})
        if environment.database_hashes(fast) != hashes:
            raise TypeError("an environment on shared databases starts in another state")
        return bases

    def environment(self, *, solo: bool = False, task: compat.Task | None = None) -> compat.Environment:
        """A new environment for one episode of the task; None: for none in particular.

        Raises:
            Tau2Error: the domain has no solo mode, or its files changed.
        """
        self.files.check_unchanged()
        return self.original(solo=solo, task=task)

    def original(self, *, solo: bool = False, task: compat.Task | None = None) -> compat.Environment:
        """An environment on the data as it was read, even if the files changed since."""
        overlays = {name: base.overlay() for name, base in self._bases.items()}
        return environment.make(self.name, solo=solo, task=task, retrieval=self.retrieval, **overlays)

    def end_state(self, world: compat.Environment) -> EndState:
        """The state that the environment is in."""
        assistant, user = self._look_at(world.tools, "db"), self._look_at(world.user_tools, "user_db")
        return EndState({"assistant": assistant[0], "user": user[0]}, [assistant[1], user[1]])

    def _look_at(self, kit: Any, name: str) -> tuple[str | None, Any]:
        """The hash of the kit's database, and the parts of it that are not shared."""
        if kit is None:
            return None, None
        changes = self._bases[name].changes(kit.db) if name in self._bases else None
        if changes is None:
            return kit.get_db_hash(), kit.db
        return self._bases[name].digest(kit.db, changes), [changes.tables, changes.fields]

    @once
    def agent_tools(self, solo: bool) -> list[Any]:
        """The agent's tools. They are shared and only give their schemas: their database belongs to no episode."""
        world = self.environment(solo=solo)
        tools = world.get_tools()
        return tools + world.get_user_tools() if solo and world.user_tools is not None else tools

    def user_tools(self, task: compat.Task) -> list[Any] | None:
        """The user simulator's tools in this task, shared like `agent_tools`. None: the domain gives it none."""
        named = getattr(task, "user_tools", None)
        return self._user_tools(None if named is None else tuple(named))

    @once
    def _user_tools(self, names: tuple[str, ...] | None) -> list[Any] | None:
        tools = compat.user_tools(self.environment(), None if names is None else list(names))
        return tools and [_UserTool(tool) for tool in tools]

    @once
    def tool_schemas(self, solo: bool) -> list[dict[str, Any]]:
        """OpenAI schemas of the agent's tools, including the solo agent's `done`. Shared: do not change them."""
        schemas = [tool.openai_schema for tool in self.agent_tools(solo)]
        if solo:
            holder = compat.LLMSoloAgent.__new__(compat.LLMSoloAgent)
            holder.tools = []
            holder.add_stop_tool()
            schemas += [tool.openai_schema for tool in holder.tools]
        return schemas

    @once
    def content_hash(self, solo: bool) -> str:
        """16 hexadecimal digits of the SHA-256 of the policy's text, for no task in particular, and of the tools."""
        content = [self.original(solo=solo).get_policy(), self.tool_schemas(solo)]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
