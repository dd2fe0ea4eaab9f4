"""Secrets: how they come to the processes that use them.

Invariant: a secret stands in an environment variable, and the settings hold only the variable's name. The one
exception is the name and password of a URL. A value goes from the process that starts the service to the processes that
use it by a call between actors, which Ray neither logs nor stores, and to no others, apart from a coordinator with a
journal, which keeps the replicas' for a fleet that is started again. Each of them tells `redaction`
what it knows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rollout_service.errors import ConfigError
from rollout_service.redaction import remember, remember_url

if TYPE_CHECKING:  # the settings name secrets, and import this room's files first
    from rollout_service.config import RolloutConfig


def secret(variable: str | None, field: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The secret in the environment variable; None: no variable is named.

    Raises:
        ConfigError: the variable is named but not set.
    """
    if variable is None:
        return None
    value = (os.environ if environ is None else environ).get(variable)
    if not value:
        # A key may have been pasted here, and not every key looks like one. Only what is written like a name is shown.
        is_name = re.fullmatch(r"[A-Z][A-Z0-9_]*(_[A-Z0-9]+|KEY|TOKEN)|KEY|TOKEN", variable)
        what = f"the environment variable {variable}" if is_name else "the environment variable that it names"
        raise ConfigError(
            f"{field}: {what} is not set.",
            "Export it where the service is started (on a cluster: before `ray start` on the head node). Write the "
            "variable's name there, never the key.",
        )
    remember(value)
    return value


def of_episodes(config: RolloutConfig) -> dict[str, str]:
    """The variables that environment actors need, with the values that this process has."""
    user = config.user.key_var if config.user_kind == "llm" else None
    return _set_here(user, config.user.review.api_key_var, config.evaluation.judge.api_key_var)


def of_replicas(config: RolloutConfig) -> dict[str, str]:
    """The variables that replicas need, with the values that this process has."""
    served = config.user.key_var if config.serves_user else None
    return _set_here(*config.policy.env_vars_from, config.gateway.tokens_var, served)


def _set_here(*names: str | None) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name is not None and name in os.environ}


def receive(variables: Mapping[str, str]) -> None:
    """Set the variables in this process and all that it starts."""
    for value in variables.values():
        remember(value)
    os.environ.update(variables)


def know(config: RolloutConfig) -> None:
    """Tell `redaction` the secrets that the settings hold or name, as far as this process has them. Every process that
    receives settings calls it, since another process may have read them."""
    for value in config.explicit().values():
        if isinstance(value, str):
            remember_url(value)
    for value in (of_episodes(config) | of_replicas(config)).values():
        remember(value)
