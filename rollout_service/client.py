"""RolloutClient: the service in a trainer's hands.

Invariant: `collect` returns everything that was asked for, or raises with what is missing and keeps what arrived.
Every method that waits has an async twin with the prefix `a`; both are one definition, see `twins`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

import rollout_service.attaching as attaching
import rollout_service.cluster as cluster
import rollout_service.config.arguments as arguments
import rollout_service.config.secrets as secrets
import rollout_service.embedded as embedded
import rollout_service.twins as twins
from rollout_service.cluster import Reference, call, repeated
from rollout_service.collecting.coordinator import Service
from rollout_service.collecting.gathering import gathered
from rollout_service.collecting.heartbeat import Heartbeat, new_client_id
from rollout_service.collecting.request import Accepted
from rollout_service.collecting.stream import ACKNOWLEDGING, GroupStream
from rollout_service.config import RolloutConfig
from rollout_service.errors import ServiceError, WeightError
from rollout_service.policy.engine_check import check_gpus
from rollout_service.policy.replicas import ReplicaState, UpdateReport
from rollout_service.policy.weights import UpdateMode, check_mode, requested_update
from rollout_service.record.batch import TrajectoryBatch

if TYPE_CHECKING:  # it needs torch
    from rollout_service.policy.weight_group import WeightGroup

_MOST_SECONDS = 1e8
"""Longest timeout that can be set. Timers overflow at some length."""


class RolloutClient:
    """Starts a service, or attaches to one, and collects trajectories from it."""

    def __init__(
        self,
        address: str | None = None,
        *,
        config: RolloutConfig | None = None,
        start: attaching.Start = None,
        token_var: str | None = None,
    ) -> None:
        """Blocks until the service is ready, which takes seconds if it has to be started.

        Args:
            address: None starts a service for this client alone, on the Ray cluster that this process is connected to,
                or else on a new one on this machine. "auto" or the address of a Ray cluster attaches to the service of
                the configured name there. "https://…" reaches the service of that name through its gateway.
            config: all settings. None: `RolloutConfig.load()`, which reads the environment.
            start: with an address: whether to start the service if it does not run there. It then ends with this
                client, in whatever way that ends. "detached": it then lives until `rollout-service service stop`. None:
                start it only if `config` is given.
            token_var: with "https://…": NAME of the environment variable that holds the gateway's token.

        Raises:
            RolloutError: arguments or settings are wrong, there is no cluster at the address or no service to attach
                to, or the service runs with other settings than `config` sets.
        """
        attaching.check_arguments(address, config, start, token_var)
        self._settings = config if config is not None else RolloutConfig.load()
        secrets.know(self._settings)
        self._id = new_client_id()
        self._heartbeat: Heartbeat | None = None
        self._owner = False
        self._remote = attaching.through_gateway(address, token_var, self._settings.service.name)
        self._disconnects = self._remote is None and not cluster.connected()
        self._embedded = address is None and self._disconnects
        if address is None:
            self._settings = embedded.prepared(self._settings, here=self._embedded)  # before Ray is started
        try:
            if self._disconnects:
                cluster.connect(address, self._settings.service.namespace)
            if self._embedded:
                check_gpus(self._settings.policy, cluster.gpus())
            if self._remote is not None:
                self._service: Service = self._remote
            else:
                there = None if address is None else attaching.running(self._settings.service)
                self._service = there or (self._start() if address is None else self._start_there(config, start))
            self._coordinator, self._fleet = self._service.coordinator, self._service.fleet
            self.config: RolloutConfig = call(self._coordinator.configuration.remote())
            attaching.check_settings(self._settings, self.config)
            self._heartbeat = self._heartbeat or Heartbeat(
                self._id, self.config.service, None if self._remote is None else self._coordinator
            )
        except BaseException:
            self.close()
            raise

    @classmethod
    async def astart(
        cls,
        address: str | None = None,
        *,
        config: RolloutConfig | None = None,
        start: attaching.Start = None,
        token_var: str | None = None,
    ) -> Self:
        """The constructor for an event loop: `client = await RolloutClient.astart(...)`. A thread does the imports,
        starts Ray and waits for the service. When cancelled, it stops what it has started.

        Arguments and errors are those of the constructor.
        """
        attaching.check_arguments(address, config, start, token_var)
        starter = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="rollout-client-start")
        made = starter.submit(cls, address, config=config, start=start, token_var=token_var)
        starter.shutdown(wait=False)
        try:
            return await asyncio.shield(asyncio.wrap_future(made))
        except asyncio.CancelledError:
            made.add_done_callback(_abandon)
            raise

    def _start_there(self, config: RolloutConfig | None, start: attaching.Start) -> Service:
        if not ((config is not None) if start is None else start):
            raise ServiceError(
                f"No service named {self._settings.service.name!r} runs on this cluster.",
                "Start one with RolloutClient(address, config=...) or --start, or set service.name to its name.",
            )
        self._settings = embedded.prepared(self._settings)
        return embedded.start(self._settings, owner=None) if start == "detached" else self._start()

    def _start(self) -> Service:
        self._heartbeat = Heartbeat(self._id, self._settings.service)
        service = embedded.start(self._settings, self._id)
        self._owner = True
        return service

    # Collections -----------------------------------------------------------------------------------------------------

    def stream(
        self, n: int | None = None, *, group_size: int = 1, groups_per_update: int | None = None, **selection: Any
    ) -> GroupStream:
        """Groups as they complete, each a list of `group_size` trajectories ordered by sample index.

        An episode that failed after all attempts is in its group as an aborted trajectory without reward. Closing the
        stream, or leaving it to the garbage collector, cancels the episodes that are left.

        Args:
            n: number of episodes, a multiple of `group_size`. None: every task of the selection, `group_size` times.
            groups_per_update: number of groups that the trainer takes between two weight updates, including those that
                it drops. With `service.max_staleness` set, a group that would be too old when it is taken is then not
                started before the next update; a trainer that asks for it earlier waits. None: groups are found too
                old when they are taken.
            selection: `domain` (a name or a mix {name: weight}), `split`, `ids`, `shuffle`, `seed`, `sampling` (as
                `policy.sampling`), `max_attempts`, `max_staleness` and `late` (as in `service`), `weight` (share of the
                slots, relative to the weights of other collections; 1), `budget` (limits by
                name, as in `budget`), `continues` (see `Output.ask`), and `ack`: `auto`, by which a group is the
                caller's for good when the next one is asked for, or `manual`, when `stream.ack(group)` says so. What
                is left out, or None, comes from the configuration. With a `seed` the same call gives the same tasks
                and episode seeds. Without one, a collection goes on where the last one of the same selection stopped.

        Raises:
            BudgetReached: the service's budget is spent; from the stream, after the last group: a budget ended it
                early.
            TaskError: unknown domain, split or task id, n is not divisible by the group size, or an argument has the
                wrong type or is out of range.
            ConfigError: an unknown or wrong sampling setting.
        """
        stream = self._submit(n, group_size, selection, groups_per_update)
        stream.open()
        return stream

    def astream(
        self, n: int | None = None, *, group_size: int = 1, groups_per_update: int | None = None, **selection: Any
    ) -> GroupStream:
        """`stream` for an event loop: `async for group in client.astream(...)`. Wrong arguments raise at once; errors
        that only the service can find, such as an unknown task id, raise with the first group."""
        return self._submit(n, group_size, selection, groups_per_update)

    def collect(
        self, n: int | None = None, *, group_size: int = 1, progress: bool = True, **selection: Any
    ) -> TrajectoryBatch:
        """All trajectories of a collection, group by group in order of completion. Arguments as for `stream`.

        Args:
            progress: show progress on stderr.

        Raises:
            IncompleteCollection: episodes failed after all attempts, the service was lost on the way, or a budget ended
                it early. It holds the trajectories that arrived.
            TaskError, ConfigError: as `stream` raises them.
        """
        return twins.run(self._collect(n, group_size, progress, selection))

    async def acollect(self, n: int | None = None, *, group_size: int = 1, **selection: Any) -> TrajectoryBatch:
        """`collect` for an event loop, without progress."""
        return await self._collect(n, group_size, False, selection)

    async def _collect(
        self, n: int | None, group_size: int, progress: bool, selection: dict[str, Any]
    ) -> TrajectoryBatch:
        arguments.truth("progress", progress)
        with contextlib.closing(self.astream(n, group_size=group_size, **selection)) as stream:
            return await gathered(stream, progress)

    def reopen(self, collection_id: str, *, ack: str = "auto") -> GroupStream:
        """The groups of an open collection that were not acknowledged, also those that another client was given.

        For a collection that the service's journal has, whose client died or whose service was started again; see
        `collections`. A client that died and whose lease has not lapsed is waited for.

        Args:
            ack: as for `stream`.

        Raises:
            ServiceError: there is no such collection, or another client reads it.
        """
        stream = self.areopen(collection_id, ack=ack)
        stream.open()
        return stream

    def areopen(self, collection_id: str, *, ack: str = "auto") -> GroupStream:
        """`reopen` for an event loop: errors of the service raise with the first group."""
        arguments.text("collection_id", collection_id, "3f9c1a7be02d", ServiceError)
        return self._stream(functools.partial(self._coordinator.reopen.remote, collection_id, self._id), ack)

    async def acollections(self) -> dict[str, dict[str, Any]]:
        """The open collections that nobody reads, by id, each with its progress as in `status`; see `reopen`."""
        return {name: it for name, it in (await self.astatus())["collections"].items() if it["parked"]}

    collections = twins.blocking(acollections)

    async def astatus(self) -> dict[str, Any]:
        """Counts: actors, slots, running and finished episodes, faults by kind, and each open collection's progress."""
        return await repeated(self._coordinator.status.remote)

    status = twins.blocking(astatus)

    # Weights ---------------------------------------------------------------------------------------------------------

    def update_weights(
        self,
        weights: str | os.PathLike[str] | Mapping[str, Any],
        *,
        version: int | None = None,
        mode: UpdateMode = "abort_and_resume",
        group: WeightGroup | None = None,
    ) -> UpdateReport:
        """Give every policy replica new weights, while episodes run. Returns when the replicas serve them.

        Args:
            weights: a checkpoint folder in Hugging Face format that the replicas' nodes can read; or torch tensors (on
                any device) or numpy arrays by their names in the model's checkpoint. Parameters that are left out keep
                their values.
            version: version of the new weights, larger than all before. None: the next one.
            mode: what running turns do: `drain` (finish first), `abort_and_resume` (stop, then continue from their
                tokens), `in_place` (continue without a stop, on the old weights' cache).
            group: send the tensors through this process group. None: through Ray's object store, where they stay for
                replicas that start later, as long as this process lives.

        Raises:
            WeightError: the weights are another model's, the version does not grow, another update is running, or a
                replica is outside the group: nothing was changed. Or the group broke during the update and is closed:
                replicas that had begun to load are replaced, and `weight_version` says what is served.
            ServiceError: no replica could load them.
        """
        version = self.weight_version() + 1 if version is None else version
        update = requested_update(weights, version, mode, group, self._service.put)
        if group is None or isinstance(weights, (str, os.PathLike)):
            return call(self._fleet.update_weights.remote(update), "fleet")
        group.check_open()
        call(self._fleet.check_update.remote(update), "fleet")  # a refusal must come before anything is sent
        return group.update(weights.values(), update)

    aupdate_weights = twins.in_thread(update_weights)

    def weight_group(
        self,
        backend: Literal["nccl", "gloo"] = "nccl",
        address: str | None = None,
        timeout_seconds: float = 600.0,
    ) -> WeightGroup:
        """Make a process group of this process (rank 0) and every replica's GPUs, for `update_weights`.

        It holds the replicas that run now: close it and make another when replicas come or go. With `nccl`,
        NCCL_CUMEM_ENABLE must have the same value here as in the replicas (0 with SGLang); this sets it where it can.

        Args:
            backend: `nccl` for GPUs, `gloo` for CPUs.
            address: address of this machine, as the replicas reach it. None: the one that Ray uses.
            timeout_seconds: longest wait for the other ranks, to join and in an update. The first tensor of an update
                also waits until the turns have stopped. A replica that dies is noticed in seconds.

        Raises:
            WeightError: the group could not be formed, or NCCL could not work in it.
        """
        from rollout_service.policy.weight_group import WeightGroup

        if backend not in ("nccl", "gloo"):
            raise WeightError(f"backend is {backend!r}.", "Choose nccl for GPUs, or gloo for CPUs.")
        arguments.optional(arguments.text, "address", address, "10.0.0.7", WeightError)
        arguments.number("timeout_seconds", timeout_seconds, 1e-3, _MOST_SECONDS, WeightError)
        terms = call(self._fleet.group_terms.remote(), "fleet")
        return WeightGroup.meet(address or cluster.own_address(), backend, terms, self._fleet, timeout_seconds)

    async def aweight_version(self) -> int:
        """Version of the weights that the service was given last."""
        return await repeated(self._fleet.weight_version.remote, "fleet")

    weight_version = twins.blocking(aweight_version)

    async def areplicas(self) -> list[ReplicaState]:
        """State of each policy replica: weight version, number of running turns, whether it is paused."""
        return await repeated(self._fleet.replicas.remote, "fleet")

    replicas = twins.blocking(areplicas)

    async def apause(self, mode: UpdateMode = "abort_and_resume") -> None:
        """Stop sampling in every replica until `resume`. Returns when they have stopped: then the trainer can use the
        GPUs.

        Args:
            mode: what happens to running turns, see `update_weights`. The time that a turn waits counts towards
                `policy.timeout_seconds`.

        Raises:
            WeightError: another mode.
        """
        check_mode(mode)
        await repeated(lambda: self._fleet.pause.remote(mode), "fleet")

    pause = twins.blocking(apause)

    async def aresume(self) -> None:
        """Go on sampling after `pause`."""
        await repeated(self._fleet.resume.remote, "fleet")

    resume = twins.blocking(aresume)

    # Life ------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel this client's open streams, stop the service if this client started it, and disconnect if this client
        connected. Closing it again does nothing."""
        heartbeat, self._heartbeat = self._heartbeat, None
        owner, self._owner = self._owner, False
        disconnects, self._disconnects = self._disconnects, False
        if heartbeat is not None:
            heartbeat.end(leaves=not owner)
        if self._remote is not None:
            self._remote.close()
            return
        if not cluster.connected():
            return
        try:
            if owner and not self._embedded:  # an embedded Ray takes everything with it
                embedded.stop(self._settings, self._service)
        finally:
            if disconnects:
                cluster.disconnect()

    aclose = twins.in_thread(close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _submit(
        self, n: int | None, group_size: int, selection: dict[str, Any], groups_per_update: int | None = None
    ) -> GroupStream:
        ack = selection.pop("ack", "auto")
        request = attaching.collection_request(
            self._settings, self.config, selection, n=n, group_size=group_size, groups_per_update=groups_per_update
        )
        submission = uuid.uuid4().hex
        return self._stream(functools.partial(self._coordinator.submit.remote, request, self._id, submission), ack)

    def _stream(self, submit: Callable[[], Reference[Accepted]], ack: str) -> GroupStream:
        ack = arguments.choice("ack", ack, ACKNOWLEDGING)
        if self._remote is None and not cluster.connected():
            raise ServiceError("This client is closed.", "Make another RolloutClient.")
        return GroupStream(self._coordinator, submit, ack)


def _abandon(made: concurrent.futures.Future[Any]) -> None:
    """Close a client that nobody waits for any more, in a thread: this may be called on an event loop."""
    if made.exception() is None:
        threading.Thread(target=made.result().close, name="rollout-client-close").start()
