"""Compares a client's settings with those of the service that it attaches to.

Invariant: a setting that the client sets equals the service's, or is sent with each of its collections, or is refused.
For every other setting the service's value holds.
"""

from __future__ import annotations

from typing import Any

from rollout_service.collecting.request import OF_SERVICE
from rollout_service.config import RolloutConfig
from rollout_service.errors import ServiceError
from rollout_service.redaction import shown

_OF_COLLECTIONS = {f"tasks.{name}": name for name in ("domain", "split", "ids", "shuffle")} | {
    f"service.{name}": name for name in OF_SERVICE
}
"""Settings that each collection may choose for itself, and its fields for them. `tasks.seed` is not among them: the
service's samplers use it, and as an argument of a collection it would start the epoch again."""

_ADDRESS = ("service.name", "service.namespace")

_FILLED_IN = ("policy.context_length",)
"""Settings that the service fills in where they are null, here with what the endpoint says."""


def chosen(own: RolloutConfig) -> dict[str, Any]:
    """The fields of each collection that the client's settings set. A null sets nothing: the service's value holds."""
    made = own.explicit()
    return {field: made[name] for name, field in _OF_COLLECTIONS.items() if made.get(name) is not None}


def check_settings(own: RolloutConfig, running: RolloutConfig) -> None:
    """Check that the service runs with what the client sets.

    Raises:
        ServiceError: it does not. Names the field and both values.
    """
    service = running.model_dump()
    for dotted, value in own.explicit().items():
        there: Any = service
        for part in dotted.split("."):
            there = there[part] if isinstance(there, dict) else None  # a section that is left out there
        free = dotted in _ADDRESS or dotted in (_FILLED_IN if value is None else _OF_COLLECTIONS)
        if not free and there != value:
            named = _OF_COLLECTIONS.get(dotted) or {"tasks.seed": "seed"}.get(dotted)
            named = named or ("sampling" if dotted.startswith("policy.sampling.") else None)
            instead = f"give {named}= to each collection" if named else "start a service of another service.name"
            raise ServiceError(
                f"{dotted}: the running service {running.service.name!r} has {shown(there, dotted)}, not "
                f"{shown(value, dotted)}.",
                f"Attach without this setting, or {instead}.",
            )
