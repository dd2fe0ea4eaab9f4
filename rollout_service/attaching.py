"""A client's arguments, and its settings beside those of the service that it attaches to.

Invariant: a setting that the client sets equals the service's, or is sent with each of its collections, or is refused.
For every other setting the service's value holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import rollout_service.cluster as cluster
import rollout_service.config.arguments as arguments
from rollout_service.collecting.coordinator import Service
from rollout_service.collecting.request import OF_SERVICE, SELECTION, CollectionRequest
from rollout_service.config import RolloutConfig
from rollout_service.config.budget import Budget
from rollout_service.config.sampling import Sampling
from rollout_service.config.service import Service as ServiceSettings
from rollout_service.errors import ConfigError, RolloutError, ServiceError
from rollout_service.redaction import shown
from rollout_service.tcp import is_url

if TYPE_CHECKING:
    from rollout_service.gateway.remote import RemoteService

_OF_COLLECTIONS = {f"tasks.{name}": name for name in ("domain", "split", "ids", "shuffle", "sampler")} | {
    f"service.{name}": name for name in OF_SERVICE
}
"""Settings that each collection may choose for itself, and its fields for them. `tasks.seed` is not among them: the
service's samplers use it, and as an argument of a collection it would start the epoch again."""

_FLEET_SECONDS = 10.0
"""Longest wait for the fleet actor, which is created right after the coordinator, when a service is starting."""

_ADDRESS = ("service.name", "service.namespace")

_FILLED_IN = ("policy.context_length", "policy.date")
"""Settings that the service fills in where they are null: with what the endpoint says, and the day of its start."""


Start = Literal["detached"] | bool | None
"""Whether a client starts the service that it does not find, and how long that lives."""


def check_arguments(address: Any, config: Any, start: Any, token_var: Any) -> None:
    """Check the arguments of `RolloutClient`, before anything is started or sent.

    Raises:
        ConfigError: one of them is wrong, or has no effect beside the others.
    """
    if isinstance(address, RolloutConfig):
        raise ConfigError("address is a RolloutConfig.", "Write RolloutClient(config=...).")
    if address is not None and not (isinstance(address, str) and address.strip()):
        raise ConfigError(
            f"address is {shown(address)}.", 'Give "auto" or the address of a Ray cluster, or leave it out.'
        )
    if config is not None and not isinstance(config, RolloutConfig):
        raise ConfigError(f"config is {shown(config)}.", "Give a RolloutConfig, such as RolloutConfig.load(path).")
    if not (start is None or isinstance(start, bool) or start == "detached"):
        raise ConfigError(f"start is {shown(start)}.", 'Give True, False or "detached".')
    if start == "detached" and address is None:
        raise ConfigError(
            "start is 'detached', but without an address the cluster ends with this process.", 'Give "auto".'
        )
    if token_var is not None and not is_url(address):
        raise ConfigError("token_var is set, but address is not that of a gateway.", 'Give "https://host:port".')
    arguments.optional(arguments.text, "token_var", token_var, "ROLLOUT_TOKEN")
    if start and is_url(address):
        raise ConfigError(f"start is {shown(start)}, but no service is started through a gateway.", "Leave it out.")
    if start is False and address is None:
        raise ConfigError("start is False, but without an address there is nothing to attach to.", "Give an address.")


def through_gateway(address: str | None, token_var: str | None, service: str, client: str) -> RemoteService | None:
    """The service of this name behind the gateway at the address, for the client of this id; None: the address is not
    that of a gateway.

    Raises:
        ConfigError: the address cannot be used, or the token's variable is not set.
    """
    if address is None or not is_url(address):
        return None
    from rollout_service.gateway import remote  # it needs an HTTP client

    return remote.connect(address, token_var, service, client)


def running(place: ServiceSettings) -> Service | None:
    """The service of this name on the cluster that this process is connected to; None: its coordinator is not there.

    Raises:
        ServiceError: its fleet is gone.
    """
    coordinator = cluster.find(cluster.coordinator_name(place.name), place.namespace)
    if coordinator is None:
        return None
    fleet = cluster.find(cluster.fleet_name(place.name), place.namespace, _FLEET_SECONDS)
    if fleet is None:
        raise cluster.gone("fleet")
    return Service(coordinator, fleet)


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


def collection_request(
    own: RolloutConfig, running: RolloutConfig, selection: Mapping[str, Any], **counts: Any
) -> CollectionRequest:
    """The request of a client for a collection: what it asks for, over what its settings set.

    Args:
        own: the client's settings; `running`: the service's.
        selection: fields of `SELECTION` by name; None sets nothing.
        counts: the other fields: `n`, `group_size`, `groups_per_update`.

    Raises:
        RolloutError: an unknown name, or a field of the wrong type or out of range.
    """
    unknown = sorted(set(selection) - set(SELECTION))
    if unknown:
        raise RolloutError(f"Unknown argument {', '.join(unknown)}.", f"Choose from {', '.join(SELECTION)}.")
    fields = chosen(own)
    if selection.get("domain") is not None:
        fields.pop("ids", None)  # they are tasks of the domain in the settings
    fields |= {name: value for name, value in selection.items() if value is not None}
    if "sampling" in fields:
        fields["sampling"] = _sampling(running, fields["sampling"])
    if "budget" in fields:
        fields["budget"] = _budget(running, fields["budget"])
    return CollectionRequest(**counts, **fields)


def _budget(running: RolloutConfig, given: Any) -> Budget:
    """The budget of a collection, each of whose limits has an effect with the service's user."""
    limits = given.model_dump(exclude_none=True) if isinstance(given, Budget) else given
    if not isinstance(limits, Mapping):
        raise ConfigError(f"budget is {shown(given)}.", "Give a mapping, such as {'usd': 5, 'wall_seconds': 3600}.")
    named = dict.fromkeys((f"budget.{name}" for name in Budget.model_fields), None)
    return running.with_overrides(named | {f"budget.{name}": value for name, value in limits.items()}).budget


def _sampling(running: RolloutConfig, given: Any) -> Sampling:
    """The service's sampling settings, with those that a collection gives in their place."""
    if isinstance(given, Sampling):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(f"sampling is {shown(given)}.", "Give a mapping, such as {'temperature': 0.7}.")
    named = {f"policy.sampling.{name}": value for name, value in given.items()}
    return running.with_overrides(named).policy.sampling
