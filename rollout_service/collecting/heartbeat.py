"""Heartbeat: renews a client's lease for as long as its process runs.

Invariant: it has a thread of its own and waits for no answer, so it delays nobody and no slow call delays it. It calls
only while the process is connected to a cluster.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import threading

import rollout_service.cluster as cluster
import rollout_service.twins as twins
from rollout_service.collecting.coordinator import CoordinatorHandle
from rollout_service.collecting.lease import renewal_seconds
from rollout_service.config.service import Service
from rollout_service.errors import RolloutError

_END_SECONDS = 5.0
"""How long a client that is closed waits for a beat that is under way, and until the service has heard of its end."""


def new_client_id() -> str:
    """An id that no other client has, and that tells a person whose it is."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Heartbeat:
    """Renews the lease of one client from its construction until `end`. The coordinator need not be there yet."""

    def __init__(self, client: str, service: Service, remote: CoordinatorHandle | None = None) -> None:
        """
        Args:
            client: id of the client.
            service: settings of the running service, or of one that is about to start.
            remote: the coordinator, where it is reached another way than through Ray. None: it is found by its name.
        """
        self._client = client
        self._service = service
        self._remote = remote
        self._coordinator: CoordinatorHandle | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="rollout-heartbeat", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stopped.wait(renewal_seconds(self._service.lease_seconds)):
            with contextlib.suppress(Exception):  # another beat may succeed, and callers learn what is wrong themselves
                if (coordinator := self._found()) is not None:
                    coordinator.renew.remote(self._client)

    def _found(self) -> CoordinatorHandle | None:
        if self._remote is not None:
            return self._remote
        if self._coordinator is None and cluster.connected():
            name = cluster.coordinator_name(self._service.name)
            self._coordinator = cluster.find(name, self._service.namespace)
        return self._coordinator if cluster.connected() else None

    def end(self, *, leaves: bool) -> None:
        """Beat no more. After it, the process may disconnect.

        Args:
            leaves: also tell the service that the client leaves, which cancels its collections. If it cannot be told,
                the lease lapses.
        """
        self._stopped.set()
        self._thread.join(_END_SECONDS)
        if leaves and (coordinator := self._found()) is not None:
            with contextlib.suppress(RolloutError, cluster.NoAnswerYet):
                twins.run(cluster.answer(coordinator.leave.remote(self._client), seconds=_END_SECONDS))
