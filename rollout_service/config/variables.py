"""Environment variables that set something.

`ROLLOUT_SECTION__FIELD` sets `section.field` (`ROLLOUT_LIMITS__MAX_TURNS=40`), and the names that τ²-bench users know
set what `TAU2_VARIABLES` says.

Invariant: a variable that looks as if it set something does so, or is refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from rollout_service.errors import ConfigError

TAU2_VARIABLES = {
    "TAU2_DOMAIN": "tasks.domain",
    "TAU2_TASK_SPLIT": "tasks.split",
    "TAU2_USER_MODEL": "user.model",
    "TAU2_USER_BASE_URL": "user.base_url",
    "TAU2_USER_API_KEY_VAR": "user.api_key_var",
}
"""τ²-bench's own variables that set something, and the setting."""

_PREFIX = "ROLLOUT_"


def settings_of(environ: Mapping[str, str], known: Iterable[str]) -> list[tuple[str, str, bool]]:
    """The variables that set something: the weaker ones first.

    Args:
        known: dotted names of all settings.

    Returns:
        Name of the variable, dotted name of the setting, and whether the value is YAML rather than plain text.

    Raises:
        ConfigError: a variable looks as if it set something, and does not.
    """
    found = [(name, dotted, False) for name, dotted in TAU2_VARIABLES.items() if environ.get(name)]
    for name in sorted(environ):
        if name == f"{_PREFIX}AGENT":
            found.append((name, "agent", False))
        elif name.startswith(_PREFIX) and "__" in name:
            found.append((name, _dotted(name), True))
        elif name.startswith(_PREFIX) and not _is_of_kubernetes(name, environ[name]):
            variables = [_PREFIX + dotted.upper().replace(".", "__") for dotted in known]
            near = [full for full in variables if full.replace("__", "_") == name.replace("__", "_")]
            near = near or difflib.get_close_matches(name, variables, n=1, cutoff=0.8)
            hint = f"Did you mean {near[0]}?" if near else "A setting's is ROLLOUT_SECTION__FIELD, else rename yours."
            raise ConfigError(f"The environment variable {name} sets nothing.", hint)
        elif name.startswith("TAU2_") and name not in TAU2_VARIABLES:  # τ²-bench has some of its own
            near = difflib.get_close_matches(name, TAU2_VARIABLES, n=1, cutoff=0.85)
            if near:
                raise ConfigError(f"The environment variable {name} sets nothing.", f"Did you mean {near[0]}?")
    return found


def _dotted(variable: str) -> str:
    """The setting that a variable names. A replica's environment variables keep their case: NCCL_DEBUG is one."""
    *parents, leaf = variable.removeprefix(_PREFIX).split("__")
    prefix = ".".join(parents).lower()
    return f"{prefix}.{leaf if prefix == 'policy.env_vars' else leaf.lower()}"


_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")


def _is_of_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes sets this in every pod, for a service that is called rollout or rollout-something."""
    return _KUBERNETES.search(name) is not None or (name.endswith("_PORT") and "://" in value)
