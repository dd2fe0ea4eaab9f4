"""How the processes of a service find and call each other: names in the cluster, typed handles, translated errors.

Invariant: whoever calls an actor needs nothing of that actor's own module, and sees the service's own errors as they
were raised, not wrapped by Ray.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar

from rollout_service.errors import RolloutError, ServiceError, last_cause
from rollout_service.redaction import shows_secret

if TYPE_CHECKING:  # Ray takes a second to import
    from ray.exceptions import RayError

    from rollout_service.config import RolloutConfig

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

DEPLOYMENT = "policy"
"""Name of the one deployment in the Serve application that fronts the policy."""

SERVE_ENVIRONMENT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}
"""Environment variables of replicas and of the actors that call them: most of what `RAY_SERVE_THROUGHPUT_OPTIMIZED`
sets. Each side of a call saves a hop between threads and its share of Ray's task machinery, so a call takes half of the
CPU time. In return, nothing may block the event loops."""


def coordinator_name(service: str) -> str:
    """Name of the coordinator actor of a service."""
    return f"{service}-coordinator"


def fleet_name(service: str) -> str:
    """Name of the fleet actor of a service."""
    return f"{service}-fleet"


def application_name(config: RolloutConfig) -> str | None:
    """Name of the Serve application that fronts the policy; None where an endpoint outside the service does."""
    if config.policy.engine == "http":
        return None
    return config.policy.application or f"{config.service.name}-policy"


class Reference(Protocol[R_co]):
    """What Ray calls an object reference: a value that may not exist yet, somewhere in the cluster."""

    def __await__(self) -> Generator[Any, Any, R_co]:
        """The value."""
        ...


class RemoteMethod(Protocol[P, R_co]):
    """A method of a remote actor."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Reference[R_co]:
        """Call it; returns at once."""
        ...


Actor = Literal["coordinator", "fleet"]
"""The actors that clients call."""

_GONE = {
    "coordinator": ("The service's coordinator is gone.", "Start the service again; see the cluster's logs."),
    "fleet": (
        "The service's fleet actor is gone: replicas can no longer be updated, paused or resumed.",
        "Start the service again; see the cluster's logs.",
    ),
}


def call(reference: Reference[R], actor: Actor = "coordinator") -> R:
    """Wait for an actor's answer.

    Raises:
        RolloutError: the actor's own.
        ServiceError: the actor is gone.
    """
    import ray

    try:
        found: R = ray.get(reference)
    except ray.exceptions.RayError as error:
        raise translated(error, actor) from None
    return found


async def answer(reference: Reference[R], actor: Actor = "coordinator") -> R:
    """`call` for an event loop."""
    from ray.exceptions import RayError

    try:
        return await reference
    except RayError as error:
        raise translated(error, actor) from None


def translated(error: RayError, actor: Actor) -> BaseException:
    """What a caller of the actor should see for an error that Ray raised."""
    from ray.exceptions import RayActorError, RayTaskError

    if isinstance(error, RayTaskError):
        if isinstance(error.cause, RolloutError):
            return error.cause
        if shows_secret(error):
            return ServiceError(f"The service failed: {last_cause(str(error))}", "See the cluster's logs.")
        return error
    return ServiceError(*_GONE[actor]) if isinstance(error, RayActorError) else error
