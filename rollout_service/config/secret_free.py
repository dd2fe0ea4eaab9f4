"""Types of settings in which no secret may stand: settings are stored and shown.

Invariant: an error does not show the value that it refuses, since it may be the secret. A URL may hold a name and a
password, which `redaction` learns before anything can show them.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from rollout_service.config.refusal import Refused
from rollout_service.redaction import conceal, has_secret_shape, is_secret_name, remember_url

_HARMLESS = {"", "0", "1", "true", "false", "none", "null"}
"""Values that are no secret, whatever the name of their variable."""


def _check_variable_name(name: str) -> str:
    looks_like_a_key = name not in os.environ and conceal(name) != name
    if looks_like_a_key or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise Refused(
            ": it must be the NAME of an environment variable, such as OPENAI_API_KEY. Its value is not shown: "
            "it may be the secret itself.",
            "Export the secret under a name, and write the name there.",
        )
    return name


def _check_url(url: str) -> str:
    remember_url(url)
    try:
        _ = urllib.parse.urlsplit(url).port
    except ValueError:
        what = "its value" if "@" in url else repr(url)
        raise Refused(
            f": {what} is not a URL.",
            "Write http://host:port, and in a name or a password %2F for a / and %40 for an @.",
        ) from None
    return url


def _check_model_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    return _check_no_secrets(
        arguments,
        "Export it as an environment variable and name that in api_key_var; or leave it out, where litellm finds the "
        "provider's own variable (AWS_SECRET_ACCESS_KEY, …).",
    )


def _check_engine_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    return _check_no_secrets(
        arguments,
        "Export it as the environment variable that the engine reads, such as HF_TOKEN, and name that in "
        "policy.env_vars_from.",
    )


def _check_template_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    return _check_no_secrets(arguments, "Leave it out: a prompt holds no secret.")


def _check_no_secrets(arguments: dict[str, Any], remedy: str) -> dict[str, Any]:
    for name in _secrets_in(arguments):
        raise Refused(f": {name} would be a secret in the settings, which are stored and shown.", remedy)
    return arguments


def _check_env_vars(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if (is_secret_name(name) and value.lower() not in _HARMLESS) or has_secret_shape(value):
            raise Refused(
                f": the value of {name} looks like a secret, and Ray logs these values.",
                "Export it where the service is started, and add its name to policy.env_vars_from.",
            )
    return variables


TemplateArguments = Annotated[dict[str, Any], AfterValidator(_check_template_arguments)]
"""Arguments of a chat template."""

VariableName = Annotated[str, AfterValidator(_check_variable_name)]
"""Name of the environment variable that holds a secret."""

Url = Annotated[str, AfterValidator(_check_url)]
"""URL, which may hold a name and a password."""

ModelArguments = Annotated[dict[str, Any], AfterValidator(_check_model_arguments)]
"""Arguments of `litellm.completion` without a secret."""

EngineArguments = Annotated[dict[str, Any], AfterValidator(_check_engine_arguments)]
"""Arguments of an engine without a secret."""

EnvVars = Annotated[dict[str, str], AfterValidator(_check_env_vars)]
"""Environment variables with their values, none of which is a secret."""


def _secrets_in(value: Any, name: str = "") -> Iterator[str]:
    """Names of entries that are named like a secret or look like one."""
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
