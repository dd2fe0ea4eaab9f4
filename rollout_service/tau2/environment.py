"""τ² environments and what of them goes into the policy's prompt.

Invariant: an environment belongs to one episode. What is the same for every episode of a domain (the tools' schemas) is
made once per process.
"""

from __future__ import annotations

import functools
from typing import Any

from rollout_service.errors import Tau2Error
from rollout_service.tau2 import compat


def make(domain: str, *, solo: bool = False) -> compat.Environment:
    """A new official environment of the domain.

    Raises:
        Tau2Error: solo mode in a domain that has none.
    """
    constructor = compat.registry.get_env_constructor(domain)
    if not solo:
        return constructor()
    try:
        return constructor(solo_mode=True)
    except ValueError as error:
        raise Tau2Error(
            f"agent: the domain {domain} has no solo mode.", "Use mock or telecom, or agent llm."
        ) from error


@functools.cache
def tool_schemas(domain: str, solo: bool = False) -> list[dict[str, Any]]:
    """OpenAI schemas of the tools that the agent holds, solo agent's `done` included. Shared: don't change them."""
    environment = make(domain, solo=solo)
    tools = environment.get_tools()
    if solo:
        tools = tools + (environment.get_user_tools() if environment.user_tools is not None else [])
    schemas = [tool.openai_schema for tool in tools]
    if solo:
        holder = compat.LLMSoloAgent.__new__(compat.LLMSoloAgent)
        holder.tools = []
        holder.add_stop_tool()
        schemas += [tool.openai_schema for tool in holder.tools]
    return schemas


def database_hashes(environment: compat.Environment) -> dict[str, str | None]:
    """τ²'s own hashes of the environment's two databases."""
    return {"assistant": environment.get_db_hash(), "user": environment.get_user_db_hash()}
