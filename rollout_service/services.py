"""The services on a cluster: found by the names of their parts, and ended by name.

Invariant: what belongs to a service is known by its names alone, so a service whose processes are dead, or half dead,
is found and ended like any other. The coordinator ends last: as long as anything of a service is left, so is the actor
that can end it, unless it died.
"""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass, field
from typing import Any

import rollout_service.cluster as cluster
import rollout_service.twins as twins
from rollout_service.cluster import NoAnswerYet, answer, coordinator_name, owned_applications
from rollout_service.collecting.coordinator import CoordinatorHandle
from rollout_service.config import RolloutConfig
from rollout_service.config.service import Service
from rollout_service.errors import ServiceError
from rollout_service.policy import applications

_ACTOR = re.compile(r"(?P<service>.+)-(coordinator|fleet|pacer|environment-\d+)", re.DOTALL)
_APPLICATION = re.compile(r"(?P<service>.+)-(policy|user|gateway)", re.DOTALL)

_POLL_SECONDS = 0.1

_ANSWER_SECONDS = 5.0
"""How long a coordinator may take to answer."""

_KILL_SECONDS = 10.0
"""How long the cluster may take to forget actors that were killed."""


@dataclass(slots=True)
class Parts:
    """What there is of a service on the cluster."""

    name: str
    namespace: str
    """Ray namespace of its actors; empty where only Serve applications are left."""
    actors: list[str] = field(default_factory=list)
    applications: list[str] = field(default_factory=list)

    @property
    def is_dead(self) -> bool:
        """Whether they are leftovers: no client can use a service without its coordinator."""
        return coordinator_name(self.name) not in self.actors

    @property
    def stop_command(self) -> str:
        """What ends it on the command line."""
        elsewhere = self.namespace not in ("", Service().namespace)
        return f"rollout-service service stop {self.name}{f' --namespace {self.namespace}' if elsewhere else ''}"

    def __str__(self) -> str:
        counted = [f"{len(self.actors)} actors"] if self.actors else []
        return ", ".join(counted + [f"Serve application {name}" for name in self.applications])


def leftovers(parts: Parts) -> ServiceError:
    """The error for a name under which there is a dead service."""
    return ServiceError(
        f"A dead service named {parts.name!r} left something on this cluster: {parts}.",
        f"Remove it with `{parts.stop_command}`, or choose another service.name.",
    )


def find_all() -> list[Parts]:
    """Every service that has a part on the cluster, ordered by name."""
    found: dict[tuple[str, str], Parts] = {}
    for actor, namespace in cluster.named_actors():
        if (match := _ACTOR.fullmatch(actor)) is not None:
            key = match["service"], namespace
            found.setdefault(key, Parts(*key)).actors.append(actor)
    for application in applications.served():
        if (match := _APPLICATION.fullmatch(application)) is not None:
            name = match["service"]
            owners = [parts for parts in found.values() if parts.name == name]
            owners = [parts for parts in owners if not parts.is_dead] or owners  # a namesake elsewhere may be dead
            for parts in owners or [found.setdefault((name, ""), Parts(name, ""))]:
                parts.applications.append(application)
    return [found[key] for key in sorted(found)]


def find_actors(name: str, namespace: str) -> list[str]:
    """Names of the actors that the service has."""
    return [
        actor
        for actor, place in cluster.named_actors()
        if place == namespace and (match := _ACTOR.fullmatch(actor)) is not None and match["service"] == name
    ]


def find(name: str, namespace: str) -> Parts | None:
    """What there is of one service; None: nothing."""
    return next((parts for parts in find_all() if parts.name == name and parts.namespace in (namespace, "")), None)


def report(parts: Parts) -> dict[str, Any]:
    """The coordinator's status. Where it cannot say, only `state`: `dead` or `silent`."""
    if parts.is_dead:
        return {"state": "dead"}
    try:
        return twins.run(answer(_coordinator(parts).status.remote(), seconds=_ANSWER_SECONDS))
    except (ServiceError, NoAnswerYet):
        return {"state": "silent"}


def configuration(parts: Parts) -> RolloutConfig | None:
    """The configuration that the service runs with; None: its coordinator is dead or does not answer."""
    if parts.is_dead:
        return None
    try:
        return twins.run(answer(_coordinator(parts).configuration.remote(), seconds=_ANSWER_SECONDS))
    except (ServiceError, NoAnswerYet):
        return None


def stop(parts: Parts) -> None:
    """Stop the service, or remove what is left of it.

    Raises:
        ServiceError: as `end` raises it.
    """
    config = configuration(parts)
    if config is not None:
        with contextlib.suppress(ServiceError, NoAnswerYet):
            twins.run(answer(_coordinator(parts).stop.remote(), seconds=_ANSWER_SECONDS))
    place = Service(name=parts.name, namespace=parts.namespace or Service().namespace)
    end(place, parts.applications if config is None else owned_applications(config))


def _coordinator(parts: Parts) -> CoordinatorHandle:
    """
    Raises:
        ServiceError: there is none any more, or an actor of that name is somebody else's.
    """
    name = coordinator_name(parts.name)
    found: CoordinatorHandle | None = cluster.find(name, parts.namespace)
    if found is None or not hasattr(found, "renew"):
        raise ServiceError(f"There is no coordinator {name!r}.", "Start the service again.")
    return found


def end(service: Service, served: list[str]) -> None:
    """End what there is of a service, and wait until it is gone. The coordinator goes last; it may call this itself,
    in a thread.

    Args:
        service: its name and namespace.
        served: the Serve applications that belong to it.

    Raises:
        ServiceError: Serve does not forget an application. All else is gone.
    """
    name, namespace = service.name, service.namespace
    coordinator = coordinator_name(name)
    for actor in find_actors(name, namespace):
        if actor != coordinator:
            cluster.kill(actor, namespace)
    kept: ServiceError | None = None
    for application in served:
        try:
            applications.delete(application)
        except ServiceError as error:
            kept = error
    cluster.kill(coordinator, namespace)
    deadline = time.monotonic() + _KILL_SECONDS
    while find_actors(name, namespace) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    if kept is not None:
        raise kept
