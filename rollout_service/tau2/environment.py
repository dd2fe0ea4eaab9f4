"""Official τ² environments, made the official way: the domain's files are parsed anew for each.

Invariant: an environment belongs to one episode. `rollout_service.tau2.domain` makes the same ones for less.
"""

from __future__ import annotations

from typing import Any

from rollout_service.errors import Tau2Error
from rollout_service.tau2 import compat


def make(domain: str, *, solo: bool = False, **databases: Any) -> compat.Environment:
    """A new official environment of the domain, on `databases` (`db`, `user_db`) where the domain takes them.

    Raises:
        Tau2Error: solo mode in a domain that has none.
    """
    constructor = compat.registry.get_env_constructor(domain)
    if not solo:
        return constructor(**databases)
    try:
        return constructor(solo_mode=True, **databases)
    except ValueError as error:
        raise Tau2Error(
            f"agent: the domain {domain} has no solo mode.", "Use mock or telecom, or agent llm."
        ) from error


def database_hashes(environment: compat.Environment) -> dict[str, str | None]:
    """τ²'s own hashes of the environment's two databases."""
    return {"assistant": environment.get_db_hash(), "user": environment.get_user_db_hash()}
