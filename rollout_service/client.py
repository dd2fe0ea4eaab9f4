"""RolloutClient: the service in a trainer's hands.

Invariant: `collect` returns everything that was asked for, or raises with what is missing and keeps what arrived.
Every method that waits has an async twin with the prefix `a`; both are one definition, see `twins`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import threading
import uuid
from collections.abc import Callable
from typing import Any, Self

import rollout_service.attaching as attaching
import rollout_service.cluster as cluster
import rollout_service.config.arguments as arguments
import rollout_service.config.secrets as secrets
import rollout_service.embedded as embedded
import rollout_service.twins as twins
from rollout_service.cluster import Reference, call, repeated
from rollout_service.collecting.coordinator import Service
from rollout_service.collecting.evaluating import asked_for, conditions, counted
from rollout_service.collecting.gathering import gathered
from rollout_service.collecting.heartbeat import Heartbeat, new_client_id
from rollout_service.collecting.judging import Dropped, Filter, Judge
from rollout_service.collecting.request import Accepted
from rollout_service.collecting.stream import ACKNOWLEDGING, GroupStream
from rollout_service.config import RolloutConfig
from rollout_service.errors import ServiceError, TaskError
from rollout_service.metrics.text import flat
from rollout_service.phases import Phases
from rollout_service.policy.engine_check import check_gpus
from rollout_service.record.batch import TrajectoryBatch
from rollout_service.record.evaluation import Evaluation
from rollout_service.sampler_client import SamplerClient
from rollout_service.weights_client import WeightsClient


class RolloutClient(WeightsClient, SamplerClient):
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
        self._owner, self._phases = False, Phases()
        self._remote = attaching.through_gateway(address, token_var, self._settings.service.name, self._id)
        self._disconnects = self._remote is None and not cluster.connected()
        self._embedded = address is None and self._disconnects
        if address is None:
            self._settings = embedded.prepared(self._settings, here=self._embedded)  # before Ray is started
        try:
            if self._disconnects:
                self._phases.end("checks")
                cluster.connect(address, self._settings.service.namespace)
                self._phases.end("Ray")
            if self._embedded:
                check_gpus(self._settings, cluster.gpus())
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
        return embedded.start(self._settings, None, self._phases) if start == "detached" else self._start()

    def _start(self) -> Service:
        self._heartbeat = Heartbeat(self._id, self._settings.service)
        service = embedded.start(self._settings, self._id, self._phases)
        self._owner = True
        return service

    # Collections -----------------------------------------------------------------------------------------------------

    def stream(
        self, n: int | None = None, *, group_size: int = 1, groups_per_update: int | None = None, **selection: Any
    ) -> GroupStream:
        """Groups as they complete, each a list of `group_size` trajectories ordered by sample index.

        An episode that failed after all attempts is in its group as an aborted trajectory without reward. With a
        `min_group_size`, a group with fewer scored trajectories is not given: it is logged and counted, and
        `stream.withheld`, a function of the group and the reason, is called with it if it is set. Closing the
        stream, or leaving it to the garbage collector, cancels the episodes that are left.

        Args:
            n: number of episodes, a multiple of `group_size`. None: every task of the selection, `group_size` times,
                unless the stream is endless.
            groups_per_update: number of groups that the trainer takes between two weight updates, including those that
                it drops itself, but not those that `keep` drops. With `service.max_staleness` set, a group that would
                be too old when it is taken is then not started before the next update; a trainer that asks for it
                earlier waits. None: groups are found too old when they are taken.
            selection: `domain` (a name or a mix {name: weight}), `split`, `ids`, `shuffle`, `seed`, `endless` (True:
                tasks are drawn, and groups begun, until it is closed), `sampling` (as `policy.sampling`), `max_turns`
                (as in `limits`), `max_attempts`, `max_staleness`, `late` and `min_group_size` (as in `service`),
                `weight` (share of the slots, relative to the weights of other collections; 1), `budget` (limits by
                name, as in `budget`), `continues` (see `Output.ask`), and `ack`: `auto`, by which a group is the
                caller's for good when the next one is asked for, or `manual`, when `stream.ack(group)` says so. What is
                left out, or None, comes from the configuration. With a `seed` the same call gives the same tasks and
                episode seeds. Without one, a collection goes on where the last one of the same selection stopped.

                `keep` filters groups, and `n` counts what is kept: others take the places of those that are dropped.
                `informative` keeps those whose rewards differ; the service decides. A function of a group, a
                list[Trajectory], decides in this process: True keeps it. `most_groups` is the number that begins at
                most; 10 times as many as are wanted. `on_dropped` is called with each group that is dropped. See
                docs/collection.md.

        Raises:
            BudgetReached: the service's budget is spent; from the stream, after the last group: a budget ended it
                early.
            TooFewKept: from the stream, after the last group: `most_groups` have begun, and too few were kept.
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
        if selection.get("endless"):
            raise TaskError(
                "endless is True, but a batch has an end.", "Take the groups of client.stream(endless=True)."
            )
        with contextlib.closing(self.astream(n, group_size=group_size, **selection)) as stream:
            return await gathered(stream, progress)

    def evaluate(
        self, *, trials: int = 1, tasks: int | None = None, progress: bool = True, **selection: Any
    ) -> Evaluation:
        """Play every task of a selection several times, and count: pass^1 to pass^`trials` with 95% intervals, and
        rewards by domain. No trajectory is kept. An episode that a fault stopped counts among the faults, and is never
        taken for a failure of the policy. The limits are τ²-bench's own: `limits.max_turns`, which is for training,
        does not hold here.

        Args:
            trials: episodes of each task, from 1 to 1000.
            tasks: only so many tasks. None: every task of the selection.
            progress: show progress on stderr.
            selection: as for `stream`: `domain`, `split`, `ids`, `seed`, `sampling`, `max_turns`,
                `max_attempts`, `weight` and `budget`. Without a `seed` it is 0, so that the same call plays the same
                episodes.

        Raises:
            IncompleteEvaluation: the service was lost on the way, or a budget ended it early. It holds what was
                counted.
            TaskError, ConfigError: as `stream` raises them.
        """
        return twins.run(self._evaluate(trials, tasks, progress, selection))

    async def aevaluate(self, *, trials: int = 1, tasks: int | None = None, **selection: Any) -> Evaluation:
        """`evaluate` for an event loop, without progress."""
        return await self._evaluate(trials, tasks, False, selection)

    async def _evaluate(self, trials: int, tasks: int | None, progress: bool, selection: dict[str, Any]) -> Evaluation:
        arguments.truth("progress", progress)
        with contextlib.closing(self.astream(**asked_for(trials, tasks, selection))) as stream:
            limits = conditions(self.config, selection.get("max_turns"))
            return await counted(stream, trials, progress, limits)

    def reopen(
        self, collection_id: str, *, ack: str = "auto", keep: Filter | None = None, on_dropped: Dropped | None = None
    ) -> GroupStream:
        """The groups of an open collection that were not acknowledged, also those that another client was given.

        For a collection that the service's journal has, whose client died or whose service was started again; see
        `collections`. A client that died and whose lease has not lapsed is waited for.

        Args:
            ack: as for `stream`.
            keep, on_dropped: as for `stream`, where a function was given to it. A group may be judged once more.

        Raises:
            ServiceError: there is no such collection, or another client reads it.
            TaskError: keep is missing, or has no effect.
        """
        stream = self.areopen(collection_id, ack=ack, keep=keep, on_dropped=on_dropped)
        stream.open()
        return stream

    def areopen(
        self, collection_id: str, *, ack: str = "auto", keep: Filter | None = None, on_dropped: Dropped | None = None
    ) -> GroupStream:
        """`reopen` for an event loop: errors of the service raise with the first group."""
        arguments.text("collection_id", collection_id, "3f9c1a7be02d", ServiceError)
        judge = Judge.of(keep, on_dropped)
        submit = functools.partial(self._coordinator.reopen.remote, collection_id, self._id, None, judge is not None)
        return self._stream(submit, ack, judge)

    async def acollections(self) -> dict[str, dict[str, Any]]:
        """The open collections that nobody reads, by id, each with its progress as in `status`; see `reopen`."""
        return {name: it for name, it in (await self.astatus())["collections"].items() if it["parked"]}

    collections = twins.blocking(acollections)

    async def astatus(self) -> dict[str, Any]:
        """Counts: actors, slots, running and finished episodes, faults by kind, and each open collection's progress."""
        return await repeated(self._coordinator.status.remote)

    status = twins.blocking(astatus)

    async def ametrics(self) -> dict[str, float]:
        """The numbers of docs/metrics.md, for a trainer's own logger: `episodes_total/retail/completed`,
        `reward/retail/mean`. What did not occur yet is left out."""
        return flat(await repeated(self._coordinator.metrics.remote))

    metrics = twins.blocking(ametrics)

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
        ack, keep, on_dropped = (selection.pop(name, None) for name in ("ack", "keep", "on_dropped"))
        judge = Judge.of(keep, on_dropped)
        selection["keep"] = "reader" if callable(keep) else keep
        request = attaching.collection_request(
            self._settings, self.config, selection, n=n, group_size=group_size, groups_per_update=groups_per_update
        )
        if judge is not None:  # also of "informative", so that what is dropped comes here
            request = dataclasses.replace(request, keep="reader")
        submission = uuid.uuid4().hex
        submit = functools.partial(self._coordinator.submit.remote, request, self._id, submission)
        takes_partial = (request.min_group_size or self.config.service.min_group_size) != "any"
        return self._stream(submit, "auto" if ack is None else ack, judge, takes_partial)

    def _stream(
        self, submit: Callable[[], Reference[Accepted]], ack: str, judge: Judge | None, takes_partial: bool = False
    ) -> GroupStream:
        ack = arguments.choice("ack", ack, ACKNOWLEDGING)
        if self._remote is None and not cluster.connected():
            raise ServiceError("This client is closed.", "Make another RolloutClient.")
        return GroupStream(self._coordinator, submit, ack, self._id, takes_partial, judge)


def _abandon(made: concurrent.futures.Future[Any]) -> None:
    """Close a client that nobody waits for any more, in a thread: this may be called on an event loop."""
    if made.exception() is None:
        threading.Thread(target=made.result().close, name="rollout-client-close").start()
