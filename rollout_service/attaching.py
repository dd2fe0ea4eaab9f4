"""A client's own settings beside those of the service that it attaches to.

Invariant: a setting that the client makes is the service's too, or goes with each of its collections, or is refused.
What it leaves at its default is the service's.
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
"""Settings that each collection may choose for itself, and its fields for them. `tasks.seed` is none: the service's
samplers have it, and as an argument it would start the epoch anew."""

_FIND_THE_SERVICE = ("service.name", "service.namespace")

_FILLED_IN = ("policy.context_length",)
"""Settings for which the service has a value, where the client's are null: here what the endpoint says."""


def chosen(own: RolloutConfig) -> dict[str, Any]:
    """The fields of each collection that the client's settings say. Null says nothing: it is the service's own."""
    made = own.explicit()
    return {field: made[name] for name, field in _OF_COLLECTIONS.items() if made.get(name) is not None}


def check_settings(own: RolloutConfig, running: RolloutConfig) -> None:
    """See that the service runs with what the client sets.

    Raises:
        ServiceError: it does not; names the field and both values.
    """
    service = running.model_dump()
    for dotted, value in own.explicit().items():
        there: Any = service
        for part in dotted.split("."):
            there = there[part] if isinstance(there, dict) else None  # a section that is left out there
        free = dotted in _FIND_THE_SERVICE or dotted in (_FILLED_IN if value is None else _OF_COLLECTIONS)
        if not free and there != value:
            named = _OF_COLLECTIONS.get(dotted) or {"tasks.seed": "seed"}.get(dotted)
            named = named or ("sampling" if dotted.startswith("policy.sampling.") else None)
            instead = f"give {named}= to each collection" if named else "start a service of another service.name"
            raise ServiceError(
                f"{dotted}: the running service {running.service.name!r} has {shown(there, dotted)}, not "
                f"{shown(value, dotted)}.",
                f"Attach without this setting, or {instead}.",
            )
