"""Clients: who uses a service, and who of them fell silent.

Invariant: a client that falls silent is reported once. The `rollout_service.collecting.lease` module decides who is
silent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import ray

import rollout_service.logs as logs
from rollout_service.background import BackgroundTasks
from rollout_service.collecting.lease import Leases

_log = logs.logger(__name__)

_LOOKS = 20
"""Looks for lapsed leases in the time that a lease lasts."""

_NOTICED = 1.5
"""Time until a lapsed lease is noticed on a busy machine, as a multiple of the lease."""


class Clients:
    """The clients of one service. Make and use it on one event loop."""

    def __init__(self, lease_seconds: float, gone: Callable[[str, str], None], owner: str | None = None) -> None:
        """
        Args:
            lease_seconds: silence after which a client counts as gone.
            gone: called with the id of each client that is gone, and with the reason.
            owner: id of the client that the service was started for, whose job this process belongs to. It is also gone
                once that job is over. None: the service was started for nobody.
        """
        self._lease_seconds = lease_seconds
        self.noticed_seconds = _NOTICED * lease_seconds
        """Within so many seconds it is noticed that a client is gone."""
        self._gone = gone
        self._leases = Leases(lease_seconds, time.monotonic())
        self._owner = owner
        if owner is not None:
            self.heard(owner)
        self._tasks = BackgroundTasks()
        self._tasks.start(self._watch(), "watching the clients' leases")

    def heard(self, client: str) -> None:
        """Note that the client is there."""
        self._leases.renew(client, time.monotonic())

    def left(self, client: str) -> None:
        """Note that the client left by itself. That is not reported."""
        self._leases.give_up(client)

    def silences(self) -> dict[str, float]:
        """Seconds since each client was heard last."""
        return self._leases.silences(time.monotonic())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / _LOOKS)
            for client in self._leases.lapsed(time.monotonic()):
                why = f"its client was silent for service.lease_seconds={self._lease_seconds:g}"
                _log.warning("Client %s is gone: %s.", client, why)
                self._gone(client, why)
            if self._owner in self._leases.silences(time.monotonic()) and await asyncio.to_thread(_job_is_over):
                self._leases.give_up(self._owner)
                self._gone(self._owner, "the process that started the service is gone")


def _job_is_over() -> bool:
    """Whether the driver whose job this actor belongs to has ended, in whatever way. Ray has no public call that says
    so without its dashboard. Where this one fails, the lease decides."""
    try:
        job = ray.get_runtime_context().get_job_id()
        jobs = ray._private.worker.global_worker.gcs_client.get_all_job_info(
            job_or_submission_id=job, skip_submission_job_info_field=True, skip_is_running_tasks_field=True
        )
        return any(info.is_dead for info in jobs.values())
    except Exception as error:
        _log.debug("Cannot ask for the owner's job: %s", error)
        return False
