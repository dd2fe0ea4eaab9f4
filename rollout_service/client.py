"""RolloutClient: the service in a trainer's hands.

Invariant: `collect` returns everything that was asked for, or raises with what is missing and keeps what arrived.
Every method has an async twin with the prefix `a`; neither blocks more than it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Self

from rollout_service.batch import TrajectoryBatch
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError, ServiceError
from rollout_service.progress import CollectionProgress
from rollout_service.trajectory import Outcome, Trajectory

_CONNECT_SECONDS = 10.0


class IncompleteCollection(RolloutError):
    """Some episodes of a collection failed for good. `batch` holds all that succeeded, `failures` the aborted ones."""

    def __init__(self, batch: TrajectoryBatch, failures: list[Trajectory]) -> None:
        faults = {f"{t.fault.kind}: {t.fault.message}" for t in failures if t.fault is not None}
        super().__init__(
            f"{len(failures)} of {len(failures) + len(batch)} episodes failed after all attempts "
            f"({'; '.join(sorted(faults)[:3]) or 'cancelled'}).",
            "The others are in .batch; see .failures for each fault.",
        )
        self.batch = batch
        self.failures = failures

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.batch, self.failures)


class RolloutClient:
    """Starts a service, or attaches to one, and collects trajectories from it."""

    def __init__(self, address: str | None = None, *, config: RolloutConfig | None = None) -> None:
        """
        Args:
            address: None starts an embedded service in a Ray of its own on this machine. "auto", or the address of a
                Ray cluster, uses that cluster: a service of the configured name is attached to if it runs there;
                otherwise, if `config` is given, it is started there and lives as long as this client.
            config: all settings; None: `RolloutConfig.load()`, which reads the environment.

        Raises:
            RolloutError: bad settings, no cluster at the address, no service there and no config to start one.
        """
        import ray

        from deploy import service

        self._ray = ray
        self._service = service
        self._embedded = address is None
        self._owner = False
        settings = config if config is not None else RolloutConfig.load()
        connected_before = ray.is_initialized()
        try:
            if not connected_before:
                connect(address, settings.service.namespace)
            self._coordinator = self._attach(settings, may_start=self._embedded or config is not None)
            self.config: RolloutConfig = service.call(self._coordinator.configuration.remote())
        except BaseException:
            if not connected_before:
                ray.shutdown()
            raise
        self._disconnects = not connected_before

    def _attach(self, config: RolloutConfig, may_start: bool) -> Any:
        name = self._service.coordinator_name(config.service.name)
        try:
            return self._ray.get_actor(name, namespace=config.service.namespace)
        except ValueError:
            if not may_start:
                raise ServiceError(
                    f"No service named {config.service.name!r} runs on this cluster.",
                    "Start one with RolloutClient(address, config=...), or set ROLLOUT_SERVICE__NAME to its name.",
                ) from None
        coordinator = self._service.start(config)
        self._owner = True
        return coordinator

    # Collections -----------------------------------------------------------------------------------------------------

    def stream(self, n: int | None = None, *, group_size: int = 1, **selection: Any) -> GroupStream:
        """Groups as they complete, each a list of `group_size` trajectories by sample index.

        An episode that failed after all attempts is in its group as an aborted trajectory without reward. Closing the
        stream, or leaving it to the garbage collector, cancels the rest.

        Args:
            n: episodes, a multiple of `group_size`; None: every task of the selection once, times `group_size`.
            selection: `domain` (a name or a mix {name: weight}), `split`, `ids`, `shuffle`, `seed`; what is left out
                comes from the configuration. With `seed` the same call gives the same tasks and episode seeds;
                without, a collection goes on where the last one of the same selection stopped.

        Raises:
            TaskError: unknown domain, split or task id, or n is not divisible by the group size.
        """
        submission = self._coordinator.submit.remote(_request(n, group_size, selection))
        return GroupStream(self._coordinator, *self._service.call(submission))

    async def astream(
        self, n: int | None = None, *, group_size: int = 1, **selection: Any
    ) -> AsyncIterator[list[Trajectory]]:
        """`stream` for an event loop."""
        collection_id, _ = await self._await(self._coordinator.submit.remote(_request(n, group_size, selection)))
        finished = False
        try:
            while True:
                group = await self._await(self._coordinator.next_group.remote(collection_id))
                if group is None:
                    finished = True
                    return
                yield list(await asyncio.gather(*(self._await(reference) for reference in group.trajectories)))
        finally:
            if not finished:
                self._coordinator.cancel.remote(collection_id)

    def collect(
        self, n: int | None = None, *, group_size: int = 1, progress: bool = True, **selection: Any
    ) -> TrajectoryBatch:
        """All trajectories of a collection, in order of completion by group; arguments as `stream`'s.

        Args:
            progress: show progress on stderr.

        Raises:
            IncompleteCollection: episodes failed after all attempts; holds those that did not.
            TaskError: as `stream`.
        """
        stream = self.stream(n, group_size=group_size, **selection)
        trajectories: list[Trajectory] = []
        with CollectionProgress(stream.episodes, enabled=progress) as bar:
            for group in stream:
                trajectories.extend(group)
                bar.add(group)
        return _complete(trajectories)

    async def acollect(self, n: int | None = None, *, group_size: int = 1, **selection: Any) -> TrajectoryBatch:
        """`collect` for an event loop, without a progress bar."""
        groups = [group async for group in self.astream(n, group_size=group_size, **selection)]
        return _complete([trajectory for group in groups for trajectory in group])

    def status(self) -> dict[str, Any]:
        """Counts: actors, slots, running and finished episodes, faults by kind, and each open collection's progress."""
        status: dict[str, Any] = self._service.call(self._coordinator.status.remote())
        return status

    async def astatus(self) -> dict[str, Any]:
        """`status` for an event loop."""
        status: dict[str, Any] = await self._await(self._coordinator.status.remote())
        return status

    # Life ------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the service if this client started it, and disconnect if this client connected."""
        if not self._ray.is_initialized():
            return
        if self._owner and not (self._embedded and self._disconnects):
            self._service.stop(self.config, self._coordinator)
        if self._disconnects:
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self.close)

    async def _await(self, reference: Any) -> Any:
        try:
            return await reference
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RolloutError):
                raise error.cause from None
            raise


class GroupStream(Iterator[list[Trajectory]]):
    """The groups of one collection, in order of completion."""

    def __init__(self, coordinator: Any, collection_id: str, episodes: int) -> None:
        self._coordinator = coordinator
        self._finished = False
        self.collection_id = collection_id
        self.episodes = episodes
        """Episodes that the whole collection has."""

    def __next__(self) -> list[Trajectory]:
        import ray

        from deploy.service import call

        if self._finished:
            raise StopIteration
        group = call(self._coordinator.next_group.remote(self.collection_id))
        if group is None:
            self._finished = True
            raise StopIteration
        return list(ray.get(group.trajectories))

    def close(self) -> None:
        """Cancel what has not finished yet."""
        if not self._finished:
            self._finished = True
            self._coordinator.cancel.remote(self.collection_id)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # the cluster may be gone by now
            self.close()


def connect(address: str | None, namespace: str) -> None:
    """Connect this process to a Ray cluster, or start one of its own (None).

    Raises:
        ServiceError: there is no cluster at the address, or none can be started.
    """
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's advice, against a warning per process
    quiet: dict[str, Any] = {"namespace": namespace, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init("local", include_dashboard=False, **quiet)
        else:
            _reach(address)
            ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        where = "this machine" if address is None else f"a Ray cluster at {address!r}"
        raise ServiceError(
            f"Cannot connect to {where}: {str(error).splitlines()[0]}",
            "Check `ray status` there; leave the address out for an embedded service.",
        ) from error


def _reach(address: str) -> None:
    """Raise `OSError` when nothing listens at host:port: Ray itself would try for minutes, then end the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def cluster_size(address: str) -> tuple[int, float, float]:
    """Nodes, CPUs and GPUs of the Ray cluster at the address.

    Raises:
        ServiceError: there is none.
    """
    import ray

    connect(address, "rollout_service")
    try:
        total = ray.cluster_resources()
        return len(ray.nodes()), total.get("CPU", 0.0), total.get("GPU", 0.0)
    finally:
        ray.shutdown()


def _request(n: int | None, group_size: int, selection: dict[str, Any]) -> Any:
    from actors.coordinator import CollectionRequest

    try:
        return CollectionRequest(n=n, group_size=group_size, **selection)
    except TypeError:
        known = [name for name in CollectionRequest.__dataclass_fields__ if name not in ("n", "group_size")]
        unknown = sorted(set(selection) - set(known))
        raise RolloutError(f"Unknown argument {', '.join(unknown)}.", f"Choose from {', '.join(known)}.") from None


def _complete(trajectories: Sequence[Trajectory]) -> TrajectoryBatch:
    failures = [t for t in trajectories if t.outcome is Outcome.ABORTED]
    batch = TrajectoryBatch([t for t in trajectories if t.outcome is not Outcome.ABORTED])
    if failures:
        raise IncompleteCollection(batch, failures)
    return batch
