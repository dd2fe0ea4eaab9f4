"""A service behind a gateway, as the handles of its actors: a client calls them as it does within the cluster.

Invariant: a call that Ray would carry has the same arguments, results and errors here. A stream that lost its
connection goes on with the group after the last whole one, so each comes exactly once.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import urllib.parse
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, ParamSpec, TypeVar, cast

from pydantic import TypeAdapter

import rollout_service.config.secrets as secrets
import rollout_service.logs as logs
from rollout_service.cluster import Call, Reference
from rollout_service.collecting.coordinator import CoordinatorHandle, Service
from rollout_service.collecting.group import Group
from rollout_service.collecting.request import OF_SAMPLER, Accepted, CollectionRequest, EpisodeRequest
from rollout_service.config import RolloutConfig
from rollout_service.config.gateway import is_loopback
from rollout_service.errors import ConfigError, WeightError
from rollout_service.gateway.delivery import CursorError, Missing
from rollout_service.gateway.link import CLIENT_HEADER, WAIT_SECONDS, Ask, Link
from rollout_service.gateway.messages import to_body
from rollout_service.gateway.wire import End, Numbered, read_arrow, to_error
from rollout_service.metrics.meter import Reading
from rollout_service.policy.fleet import FleetHandle
from rollout_service.policy.replicas import ReplicaState, UpdateReport
from rollout_service.policy.weights import Checkpoint, UpdateMode, WeightUpdate

P = ParamSpec("P")
R = TypeVar("R")

_log = logs.logger(__name__)

_UPDATE_SECONDS = 3600.0
"""How long a weight update, or a pause that lets turns finish, may take, over all lost connections."""

_GROUP_SECONDS = 300.0
"""How long a reader tries to reach a gateway that gives no answer."""

_REPLICAS = TypeAdapter(list[ReplicaState])
_REPORT = TypeAdapter(UpdateReport)
_READINGS = TypeAdapter(list[Reading])


@dataclass(frozen=True, slots=True)
class RemoteService(Service):
    """A service behind a gateway."""

    link: Link = field(kw_only=True)

    def close(self) -> None:
        """End every call and connection."""
        self.link.close()


def connect(address: str, token_var: str | None, service: str, client: str) -> RemoteService:
    """The service of this name behind the gateway at the address, for the client of this id. Nothing is sent yet.

    Raises:
        ConfigError: the address cannot be used, or the variable is not set.
    """
    parts = urllib.parse.urlsplit(address.strip())
    try:
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            "address is not that of a gateway.", "Write https://host:port, and name the token's variable in token_var."
        )
    token = secrets.secret(token_var, "token_var")
    if token is not None and parts.scheme == "http" and not is_loopback(host) and not _is_private(host):
        _log.warning("The token goes to %s without TLS: whoever is on the way can read it.", host)
    link = Link(f"{address.strip().rstrip('/')}/{urllib.parse.quote(service, safe='')}", token, client)
    coordinator = cast(CoordinatorHandle, RemoteCoordinator(link))
    return RemoteService(coordinator, cast(FleetHandle, RemoteFleet(link)), _refuse_tensors, link=link)


def _is_private(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


class _Method(Generic[P, R]):
    """A method that is called as one of an actor."""

    def __init__(self, link: Link, method: Callable[P, Coroutine[Any, Any, R]]) -> None:
        self._link = link
        self._method = method

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Call it; returns at once."""
        return self._link.start(self._method(*args, **kwargs))


@dataclass(slots=True)
class _Cursor:
    """How far a collection's groups were read. Its own numbers of groups stay; a gateway that was started again gives
    groups new numbers."""

    numbers: dict[str, int] = field(default_factory=dict)
    """Number of each group that came, by the group's id."""
    theirs: dict[int, int] = field(default_factory=dict)
    """Our number of each group, by the gateway's number."""
    last: int = 0
    """The gateway's number of the group that came last."""
    settled: int = 0
    """The trainer has all groups up to this gateway's number for good."""
    acknowledged: set[int] = field(default_factory=set)
    """Our numbers of the groups that the trainer has for good."""
    refused: set[int] = field(default_factory=set)
    """Our numbers of the groups that the trainer dropped, of which no gateway was told."""
    told: set[int] = field(default_factory=set)
    """The gateway's numbers of the groups beyond `settled` that it was told of."""
    has_ended: bool = False
    """Whether there are no more groups."""

    @property
    def is_over(self) -> bool:
        """Whether the trainer has every group for good."""
        return self.has_ended and self.settled == self.last

    @property
    def also(self) -> list[int]:
        """The gateway's numbers of the groups beyond `settled` that the trainer has for good, and the gateway was not
        told of."""
        beyond = range(self.settled + 1, self.last + 1)
        return [n for n in beyond if n not in self.told and self.theirs.get(n, -1) in self.acknowledged]

    def came(self, number: int, group_id: str) -> bool:
        """Note a group, by the gateway's number. Returns whether the trainer is to have it: it is new, or is to
        be dropped once more."""
        is_new = group_id not in self.numbers
        ours = self.theirs[number] = self.numbers.setdefault(group_id, len(self.numbers))
        self.last = number
        return is_new or ours in self.refused

    def acknowledge(self, numbers: Sequence[int]) -> None:
        """Note which groups, by our numbers, the trainer has for good."""
        self.acknowledged.update(numbers)
        while self.theirs.get(self.settled + 1, -1) in self.acknowledged:
            self.settled += 1

    def restart(self) -> None:
        """Begin anew with a gateway that does not know how far it was."""
        self.theirs.clear()
        self.told.clear()
        self.last = self.settled = 0


class RemoteCoordinator:
    """The coordinator behind a gateway: what clients call of it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._cursors: dict[str, _Cursor] = {}
        self.configuration = _Method(link, self._configuration)
        self.submit = _Method(link, self._submit)
        self.reopen = _Method(link, self._reopen)
        self.next_group = _Method(link, self._next_group)
        self.acknowledge = _Method(link, self._acknowledge)
        self.drop = _Method(link, self._drop)
        self.cancel = _Method(link, self._cancel)
        self.cancel_submitted = _Method(link, self._cancel_submitted)
        self.renew = _Method(link, self._renew)
        self.leave = _Method(link, self._leave)
        self.sampler = _Method(link, self._sampler)
        self.status = _Method(link, self._status)
        self.metrics = _Method(link, self._metrics)

    async def _configuration(self) -> RolloutConfig:
        found = await self._link.ask(Ask("GET", "/v1/configuration", patience=0.0), json.loads)
        return RolloutConfig.model_validate(found)

    async def _submit(self, request: CollectionRequest, client: str, submission: str) -> Accepted:
        headers = {"idempotency-key": submission, CLIENT_HEADER: client}
        found = await self._link.ask(Ask("POST", "/v1/collections", to_body(request), headers=headers), json.loads)
        return Accepted(**found)

    async def _reopen(
        self, collection_id: str, client: str, silent: str | None = None, judges: bool | None = None
    ) -> Accepted:
        query = None if judges is None else {"judges": str(judges).lower()}
        headers = {CLIENT_HEADER: client}
        ask = Ask("POST", f"{_path(collection_id)}/reopen", query=query, headers=headers, patience=_GROUP_SECONDS)
        found = await self._link.ask(ask, json.loads)
        self._cursors.pop(collection_id, None)  # the gateway numbers the groups anew
        return Accepted(**found)

    async def _next_group(
        self, collection_id: str, acked: Sequence[int] = (), again: bool = False, client: str | None = None
    ) -> Group | None:
        """The gateway knows the client by the header that the link sends, here and below."""
        cursor = self._cursors.setdefault(collection_id, _Cursor())
        query = {"limit": "1", "wait": f"{WAIT_SECONDS:g}", "form": "arrow"}
        while True:
            cursor.acknowledge(acked)
            query |= {"after": str(cursor.last), "acknowledged": str(cursor.settled)}
            ask = Ask("GET", f"{_path(collection_id)}/groups", query=dict(query), patience=_GROUP_SECONDS)
            try:
                groups, end = await self._link.ask(ask, read_arrow)
            except CursorError:
                if not cursor.last:
                    raise
                cursor.restart()
                continue
            for found in groups:
                if cursor.came(found.number, found.trajectories[0].group_id):
                    return _group(found, cursor.theirs[found.number])
            if not groups and end.state != "open":
                cursor.has_ended = True
                self._forget_if_over(collection_id, cursor)
                _check_not_failed(end)
                return None

    async def _acknowledge(self, collection_id: str, numbers: Sequence[int], client: str | None = None) -> None:
        cursor = self._cursors.get(collection_id)
        if cursor is not None:
            cursor.acknowledge(numbers)
            body: dict[str, Any] = {"number": cursor.settled}
            if also := cursor.also:
                body["also"] = also
            await self._link.ask(Ask("POST", f"{_path(collection_id)}/acknowledge", body), _nothing)
            cursor.told.update(also)
            self._forget_if_over(collection_id, cursor)

    async def _drop(self, collection_id: str, numbers: Sequence[int], client: str | None = None) -> None:
        cursor = self._cursors.setdefault(collection_id, _Cursor())
        theirs = [number for number, ours in cursor.theirs.items() if ours in numbers]
        body = {"number": cursor.settled, "dropped": theirs}
        try:
            await self._link.ask(Ask("POST", f"{_path(collection_id)}/acknowledge", body), _nothing)
        except CursorError:  # the gateway was started again: they come once more, and are dropped then
            cursor.refused.update(numbers)
            cursor.restart()
        else:
            cursor.refused.difference_update(numbers)
            cursor.acknowledge(numbers)
            cursor.told.update(theirs)

    def _forget_if_over(self, collection_id: str, cursor: _Cursor) -> None:
        if cursor.is_over:
            self._cursors.pop(collection_id, None)

    async def _cancel(self, collection_id: str, client: str | None = None) -> None:
        self._cursors.pop(collection_id, None)
        with contextlib.suppress(Missing):  # it ended before
            await self._link.ask(Ask("DELETE", _path(collection_id)), _nothing)

    async def _cancel_submitted(self, submission: Accepted | Reference[Accepted], client: str | None = None) -> None:
        accepted = submission if isinstance(submission, Accepted) else await submission
        await self._cancel(accepted.collection_id)

    async def _renew(self, client: str) -> None:
        await self._link.ask(Ask("POST", "/v1/clients/renew", {"client": client}, patience=0.0), _nothing)

    async def _leave(self, client: str) -> None:
        await self._link.ask(Ask("POST", "/v1/clients/leave", {"client": client}, patience=5.0), _nothing)

    async def _sampler(
        self, request: CollectionRequest, state: dict[str, Any] | None, weights: dict[str, float] | None
    ) -> dict[str, Any]:
        change = {"state": state, "weights": weights}
        body = {name: value for name, value in to_body(request).items() if name in OF_SAMPLER}
        body |= {name: value for name, value in change.items() if value is not None}
        return await self._link.ask(Ask("POST", "/v1/samplers", body), json.loads)

    async def _status(self) -> dict[str, Any]:
        return await self._link.ask(Ask("GET", "/v1/status"), json.loads)

    async def _metrics(self) -> list[Reading]:
        return await self._link.ask(Ask("GET", "/v1/metrics", query={"form": "json"}), _READINGS.validate_json)


class RemoteFleet:
    """The fleet behind a gateway: what clients call of it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.weight_version = _Method(link, self._weight_version)
        self.replicas = _Method(link, self._replicas)
        self.pause = _Method(link, self._pause)
        self.resume = _Method(link, self._resume)
        self.update_weights = _Method(link, self._update_weights)
        self.check_update = _Method(link, self._no_group)
        self.group_terms = _Method(link, self._no_group)

    async def _no_group(self, *_: Any) -> Any:
        raise WeightError(
            "A process group does not go through a gateway.",
            "Run the trainer in the cluster, or give a checkpoint folder.",
        )

    async def _weight_version(self) -> int:
        found = await self._link.ask(Ask("GET", "/v1/weights"), json.loads)
        return int(found["version"])

    async def _replicas(self) -> list[ReplicaState]:
        return await self._link.ask(Ask("GET", "/v1/replicas"), _REPLICAS.validate_json)

    async def _pause(self, mode: UpdateMode) -> list[ReplicaState]:
        ask = Ask("POST", "/v1/pause", {"mode": mode}, patience=_UPDATE_SECONDS)
        return await self._link.ask(ask, _REPLICAS.validate_json)

    async def _resume(self) -> list[ReplicaState]:
        return await self._link.ask(Ask("POST", "/v1/resume"), _REPLICAS.validate_json)

    async def _update_weights(self, update: WeightUpdate) -> UpdateReport:
        assert isinstance(update.source, Checkpoint), "tensors are refused before"
        body = {"path": update.source.path, "version": update.version, "mode": update.mode}
        ask = Ask("POST", "/v1/weights", body, headers={"idempotency-key": uuid.uuid4().hex}, patience=_UPDATE_SECONDS)
        return await self._link.ask(ask, _REPORT.validate_json)


def _refuse_tensors(*_: Any) -> Any:
    """Takes the place of `ray.put` where no Ray cluster is reached.

    Raises:
        WeightError: always.
    """
    raise WeightError(
        "Tensors do not go through a gateway.",
        "Give the path of a checkpoint folder that the replicas' nodes can read.",
    )


def _path(collection_id: str) -> str:
    return f"/v1/collections/{urllib.parse.quote(collection_id, safe='')}"


def _nothing(_: bytes) -> None:
    return None


def _check_not_failed(end: End) -> None:
    if end.state == "failed":
        raise to_error(end.error)


def _group(found: Numbered, number: int) -> Group:
    requests = [
        EpisodeRequest(
            trajectory_id=each.trajectory_id,
            collection_id=each.collection_id,
            group_id=each.group_id,
            sample_index=each.sample_index,
            task=each.task,
            seed=each.seed,
            attempt=each.attempt,
        )
        for each in found.trajectories
    ]
    return Group(requests, [Call.of(each) for each in found.trajectories], number, found.withheld, found.dropped)
