"""How the processes of a service find and call each other: connecting, names, typed handles, translated errors.

Invariant: whoever calls an actor needs nothing of that actor's own module, and sees the service's own errors as they
were raised, not wrapped by Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Protocol, TypeVar, cast

import rollout_service.served_user as served_user
import rollout_service.threads as threads
import rollout_service.twins as twins
from rollout_service.calls import Call as Call
from rollout_service.calls import NoAnswerYet as NoAnswerYet
from rollout_service.errors import Interrupted, RolloutError, ServiceError, first_line, last_cause
from rollout_service.redaction import safe_cause, shows_secret
from rollout_service.tcp import check_listening

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

SERVE_CONTROLLER_ENVIRONMENT = {"RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1"}
"""With it a replica that hangs is killed, and its turns are sent again. Serve would first wait for these turns."""

_own_rays: set[str] = set()
"""Addresses of the GCS of each Ray that this process started."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
"""Seconds until a call that an actor's death cut off is made again; the time doubles."""

_POLL_SECONDS = 0.05
"""Time between two looks for an actor."""

_OWN_RAY = {"task_events_report_interval_ms": 0}
"""Settings of a Ray that this process starts for itself. Its head would keep the last 100,000 tasks in memory, for a
dashboard that is not there."""


def coordinator_name(service: str) -> str:
    """Name of the coordinator actor of a service."""
    return f"{service}-coordinator"


def fleet_name(service: str) -> str:
    """Name of the fleet actor of a service."""
    return f"{service}-fleet"


def pacer_name(service: str) -> str:
    """Name of the actor that shares the requests to the user simulator's endpoint."""
    return f"{service}-pacer"


def gateway_name(service: str) -> str:
    """Name of the Serve application that is the gateway of a service."""
    return f"{service}-gateway"


def application_name(config: RolloutConfig) -> str | None:
    """Name of the Serve application that fronts the policy; None where an endpoint outside the service does."""
    if config.policy.engine == "http":
        return None
    return config.policy.application or f"{config.service.name}-policy"


def owned_applications(config: RolloutConfig) -> list[str]:
    """Names of the Serve applications that a service starts, and that end with it."""
    name, policy = config.service.name, application_name(config)
    others = [] if config.gateway.port is None else [gateway_name(name)]
    others += [served_user.application_name(name)] if config.serves_user else []
    return others if policy is None or config.policy.application is not None else [*others, policy]


class Reference(Protocol[R_co]):
    """Ray's object reference: stands for a value somewhere in the cluster that may not exist yet."""

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


async def answer(reference: Reference[R], actor: Actor = "coordinator", seconds: float | None = None) -> R:
    """Wait for an actor's answer; in a blocking twin the wait blocks, see `twins`.

    Raises:
        RolloutError: the actor's own.
        ServiceError: the actor is gone.
        NoAnswerYet: it has not come in so many `seconds`.
    """
    if isinstance(reference, Call):
        return await reference.answer(seconds)
    import ray

    try:
        if twins.blocks():
            found: R = ray.get(reference, timeout=seconds)
            return found
        async with asyncio.timeout(seconds):
            return await reference
    except ray.exceptions.GetTimeoutError:
        raise NoAnswerYet from None
    except ray.exceptions.RayError as error:
        raise translated(error, actor) from None
    except TimeoutError:  # asyncio's: an actor's own TimeoutError is a RayError as well
        raise NoAnswerYet from None


async def repeated(call: Callable[[], Reference[R]], actor: Actor = "coordinator") -> R:
    """The answer to a call that is safe to repeat: it is made again where the death of the actor cut it off.

    Raises:
        RolloutError: the actor's own.
        ServiceError: the actor is gone for good.
    """
    interruptions = 0
    while True:
        try:
            return await answer(call(), actor)
        except Interrupted:
            interruptions += 1
            await pause(interruptions)


async def pause(interruptions: int) -> None:
    """Wait before a call is made again that was interrupted so many times in a row; in a blocking twin the wait
    blocks."""
    await twins.pause(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(interruptions, 16)))


def call(reference: Reference[R], actor: Actor = "coordinator") -> R:
    """`answer`, blocking."""
    return twins.run(answer(reference, actor))


def as_argument(reference: Reference[R]) -> R:
    """The reference as an argument of a remote call: Ray makes the call once its value exists, and passes that."""
    return cast(R, reference)


@dataclass(frozen=True, slots=True)
class LostObject:
    """Stands for an object that went down with the node that held it."""

    error: Exception


async def fetched(references: Sequence[Reference[R]]) -> list[R | LostObject]:
    """The objects, in the order of their references; in a blocking twin the wait blocks."""
    if any(isinstance(reference, Call) for reference in references):
        return [await answer(reference) for reference in references]
    import ray

    if not twins.blocks():
        found = await asyncio.gather(*references, return_exceptions=True)
    else:
        try:
            return list(ray.get(list(references)))
        except ray.exceptions.RayError:
            found = [_object_or_error(reference) for reference in references]
    return [LostObject(item) if isinstance(item, ray.exceptions.RayError) else _value(item) for item in found]


def _object_or_error(reference: Reference[R]) -> R | BaseException:
    import ray

    try:
        found: R = ray.get(reference)
    except ray.exceptions.RayError as error:
        lost: BaseException = error
        return lost
    return found


def _value(item: R | BaseException) -> R:
    if isinstance(item, BaseException):
        raise item
    return item


def translated(error: RayError, actor: Actor) -> BaseException:
    """The error that a caller of the actor sees in place of one that Ray raised."""
    from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError

    if isinstance(error, RayTaskError):
        if isinstance(error.cause, RolloutError):
            return error.cause
        if shows_secret(error):
            return ServiceError(f"The service failed: {last_cause(str(error))}", "See the cluster's logs.")
        return error
    if isinstance(error, ActorUnavailableError):
        return Interrupted(f"The service's {actor} was interrupted.", "Call it again: it comes back if it can.")
    return gone(actor, last_cause(str(error))) if isinstance(error, RayActorError) else error


def gone(actor: Actor, why: str = "") -> ServiceError:
    """The error that a caller of an actor that died sees. `why` it died, as Ray says it."""
    problem, remedy = _GONE[actor]
    return ServiceError(f"{problem} Ray says: {why}" if why else problem, remedy)


# Connecting ----------------------------------------------------------------------------------------------------------


def reachable(reference: Reference[Any]) -> bool:
    """Whether whoever made the reference can be called now."""
    return isinstance(reference, Call) or connected()


def connected() -> bool:
    """Whether this process is connected to a cluster. A remote call from one that is not would start a new cluster."""
    import ray

    return bool(ray.is_initialized())


def has_working_dir() -> bool:
    """Whether Ray's workers run in a copy of a folder, the `working_dir` of a job or of this process's runtime_env."""
    import ray

    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")  # Ray sets it in the process of a job
    if "working_dir" in (job.get("runtime_env") or {}):
        return True
    return ray.is_initialized() and "working_dir" in ray.get_runtime_context().runtime_env


def started_here() -> bool:
    """Whether this process started the Ray that it is connected to."""
    import ray

    return ray.get_runtime_context().gcs_address in _own_rays


def disconnect() -> None:
    """Leave the cluster. One that this process started ends with it."""
    import ray

    ray.shutdown()
    serve = sys.modules.get("ray.serve.context")
    if serve is not None:  # else it would ask the controller of the cluster that was left, on the next one too
        serve._set_global_client(None)


def put(value: Any) -> Any:
    """Put a value into the object store; returns its reference."""
    import ray

    return ray.put(value)


def own_address() -> str:
    """This machine's address, as the cluster's other nodes reach it."""
    import ray

    return str(ray.util.get_node_ip_address())


def find(actor: str, namespace: str, seconds: float = 0.0) -> Any | None:
    """Handle of the named actor; None if there is none within so many seconds."""
    import ray

    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ValueError):
            return ray.get_actor(actor, namespace=namespace)
        if time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_SECONDS)


def named_actors() -> list[tuple[str, str]]:
    """Name and namespace of every named actor of the cluster."""
    import ray

    return [(actor["name"], actor["namespace"]) for actor in ray.util.list_named_actors(all_namespaces=True)]


def kill(actor: str, namespace: str) -> None:
    """Kill the named actor, for good. Does nothing if it is gone."""
    import ray

    if (handle := find(actor, namespace)) is not None:
        ray.kill(handle)


def connect(address: str | None, namespace: str) -> None:
    """Connect this process to a Ray cluster, or start one of its own (None).

    Raises:
        ServiceError: there is no cluster at the address, it wants a token, or none can be started.
    """
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # as Ray advises; else each process warns
    quiet: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            for name, value in SERVE_CONTROLLER_ENVIRONMENT.items():
                os.environ.setdefault(name, value)  # all that Ray starts has it
            started = {"include_dashboard": False, "_system_config": _OWN_RAY}
            threads.run_in_lasting_thread(lambda: ray.init("local", **started, **quiet))
            _own_rays.add(ray.get_runtime_context().gcs_address)
        else:
            host, _, port = address.rpartition(":")
            if host and port.isdigit():  # Ray itself would try for minutes, then end the process
                check_listening(address)
            ray.init(address, **quiet)
    except Exception as error:  # of a node that is slow to start Ray says so in a plain Exception
        said = error.message if isinstance(error, ray.exceptions.AuthenticationError) else first_line(error)
        raise _no_cluster(address, said.rstrip(".")) from safe_cause(error)


def _no_cluster(address: str | None, said: str) -> ServiceError:
    if address is None:
        return ServiceError(
            f"Cannot start Ray on this machine: {said}.",
            "See Ray's logs in /tmp/ray/session_latest/logs. A machine that is short of memory, of room in /tmp or of "
            "free CPUs starts it too slowly: free some and try again.",
        )
    return ServiceError(
        f"Cannot connect to a Ray cluster at {address!r}: {said}.",
        "Check `ray status` there. A cluster with token authentication wants RAY_AUTH_MODE=token, and its token in "
        "~/.ray/auth_token or RAY_AUTH_TOKEN: `ray get-auth-token` on its head prints it. "
        "Leave the address out for an embedded service.",
    )


def gpus() -> float:
    """GPUs of the cluster that this process is connected to."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0.0))


def cluster_size(address: str) -> tuple[int, float, float]:
    """Nodes, CPUs and GPUs of the Ray cluster at the address.

    Raises:
        ServiceError: there is none.
    """
    import ray

    connect(address, "rollout_service")
    try:
        return len(ray.nodes()), float(ray.cluster_resources().get("CPU", 0.0)), gpus()
    finally:
        ray.shutdown()
