"""The Serve applications of services: listed and deleted.

Invariant: an application that is deleted is gone when `delete` returns, with its replicas, or `delete` says that it is
not.
"""

from __future__ import annotations

import contextlib
import time

import rollout_service.cluster as cluster
from rollout_service.errors import ServiceError

_POLL_SECONDS = 0.1

_DELETE_SECONDS = 5.0
"""How long replicas may take to end by themselves."""

_GIVE_UP_SECONDS = 60.0
"""How long Serve's controller may take to forget an application whose replicas are gone."""


def served() -> list[str]:
    """Names of the Serve applications on this cluster."""
    from ray import serve

    return list(serve.status().applications)


def delete(application: str) -> None:
    """Delete the Serve application, if it is there. Replicas that do not end soon are killed: no turn is worth waiting
    for. Where none runs, all are killed at once: Serve would wait for one that was never placed as long as for the
    longest turn.

    Raises:
        ServiceError: Serve does not forget it.
    """
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    with contextlib.suppress(RayServeException, RayError):
        _delete(application)


def _delete(application: str) -> None:
    from ray import serve

    status = serve.status().applications.get(application)
    if status is None:
        return
    runs = any("RUNNING" in each.replica_states for each in status.deployments.values())
    serve.delete(application, _blocking=False)
    begun = time.monotonic()
    deadline = begun + (_DELETE_SECONDS if runs else 0.0)
    while application in serve.status().applications:
        if time.monotonic() > begun + _GIVE_UP_SECONDS:
            raise ServiceError(
                f"Ray Serve has the application {application} still, {_GIVE_UP_SECONDS:g} s after it was deleted.",
                "See the log of Serve's controller. `serve shutdown` ends Serve with all its applications.",
            )
        if time.monotonic() > deadline:
            for actor, namespace in cluster.named_actors():
                if actor.startswith(f"SERVE_REPLICA::{application}#"):
                    cluster.kill(actor, namespace)
            deadline += _DELETE_SECONDS
        time.sleep(_POLL_SECONDS)
