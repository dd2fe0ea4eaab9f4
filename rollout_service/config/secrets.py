"""Secrets: where the settings may have them, and how they come to the processes that use them.

Invariant: a secret stands in an environment variable, and the settings hold the variable's name; the one exception is
the name and password of a URL. A value goes from the process that starts the service to the processes that use it by a
call between actors, which Ray neither logs nor stores, and to no others. What these processes know of it, `redaction`
takes out of all that they say.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from rollout_service.errors import ConfigError
from rollout_service.redaction import conceal, has_secret_shape, is_secret_name, remember, remember_url

if TYPE_CHECKING:  # it is made of the types below
    from rollout_service.config import RolloutConfig

_HARMLESS = {"", "0", "1", "true", "false", "none", "null"}
"""Values of a variable that hold no secret, whatever its name."""


# What a setting may hold ---------------------------------------------------------------------------------------------


class Misplaced(ValueError):
    """A secret that stands in the settings, or may be one. Neither text shows it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy


def _variable_name(name: str) -> str:
    looks_like_a_key = name not in os.environ and conceal(name) != name
    if looks_like_a_key or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise Misplaced(
            "it must be the NAME of an environment variable, such as OPENAI_API_KEY. What stands there is not shown: "
            "it may be the secret itself.",
            "Export the secret under a name, and write the name there.",
        )
    return name


def _url(url: str) -> str:
    remember_url(url)
    try:
        _ = urllib.parse.urlsplit(url).port
    except ValueError:
        what = "what stands there" if "@" in url else repr(url)
        raise Misplaced(
            f"{what} is not a URL.", "Write http://host:port, and in a name or a password %2F for a / and %40 for an @."
        ) from None
    return url


def _model_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    return _without_secrets(
        arguments,
        "Export it as an environment variable and name that in api_key_var; or leave it out, where litellm finds the "
        "provider's own variable (AWS_SECRET_ACCESS_KEY, …).",
    )


def _engine_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    return _without_secrets(
        arguments,
        "Export it as the environment variable that the engine reads, such as HF_TOKEN, and name that in "
        "policy.env_vars_from.",
    )


def _without_secrets(arguments: dict[str, Any], remedy: str) -> dict[str, Any]:
    for name in _secrets_in(arguments):
        raise Misplaced(f"{name} would be a secret in the settings, which are stored and shown.", remedy)
    return arguments


def _env_vars(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if (is_secret_name(name) and value.lower() not in _HARMLESS) or has_secret_shape(value):
            raise Misplaced(
                f"the value of {name} looks like a secret, and Ray logs what stands here.",
                "Export it where the service is started, and add its name to policy.env_vars_from.",
            )
    return variables


VariableName = Annotated[str, AfterValidator(_variable_name)]
"""Name of the environment variable that holds a secret."""

Url = Annotated[str, AfterValidator(_url)]
"""May hold a name and a password."""

ModelArguments = Annotated[dict[str, Any], AfterValidator(_model_arguments)]
"""Arguments of `litellm.completion` without a secret."""

EngineArguments = Annotated[dict[str, Any], AfterValidator(_engine_arguments)]
"""Arguments of an engine without a secret."""

EnvVars = Annotated[dict[str, str], AfterValidator(_env_vars)]
"""Environment variables with their values, none of which is a secret."""


def _secrets_in(value: Any, name: str = "") -> Iterator[str]:
    """Names under which the value holds what is named like a secret or looks like one."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _secrets_in(below, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for below in value:
            yield from _secrets_in(below, name)
    elif value is not None and not isinstance(value, bool):
        named = any(is_secret_name(part) for part in re.split(r"\.", name))
        if named or (isinstance(value, str) and has_secret_shape(value)):
            yield name


# Where they come from ------------------------------------------------------------------------------------------------


def secret(variable: str | None, field: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The secret that the environment variable holds; None when no variable is named.

    Raises:
        ConfigError: the variable is named but not set.
    """
    if variable is None:
        return None
    value = (os.environ if environ is None else environ).get(variable)
    if not value:
        # A key may have been pasted here, and not every key looks like one: only what is written as names are is shown.
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
    """The variables that environment actors need and this process has, with their values."""
    user = config.user.api_key_var if config.user_kind == "llm" else None
    return _set_here(user, config.evaluation.judge.api_key_var)


def of_replicas(config: RolloutConfig) -> dict[str, str]:
    """The variables that the policy's replicas need and this process has, with their values."""
    return _set_here(*config.policy.env_vars_from)


def _set_here(*names: str | None) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name is not None and name in os.environ}


def receive(variables: Mapping[str, str]) -> None:
    """Set the variables in this process, for all that it does and starts from now on."""
    for value in variables.values():
        remember(value)
    os.environ.update(variables)


def know(config: RolloutConfig) -> None:
    """Have `redaction` know the secrets that the settings hold or name, as far as this process has them. Every process
    that is given settings calls it: they may have come from another one."""
    for url in (config.policy.url, config.user.base_url, config.evaluation.judge.base_url):
        if url is not None:
            remember_url(url)
    for value in (of_episodes(config) | of_replicas(config)).values():
        remember(value)
