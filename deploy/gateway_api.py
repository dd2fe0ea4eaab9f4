"""The gateway's routes: a service over HTTP.

Invariant: a request that cannot be met gets a 4xx answer with the error's class, problem and remedy. 5xx answers are
for a service that is broken. No route can be reached without a token that allows it, where there are tokens.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Header, Path, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp

from deploy.gateway_door import Door, Json, Scopes, error
from deploy.gateway_evaluations import Evaluations
from deploy.gateway_streams import Streams
from rollout_service.cluster import answer
from rollout_service.collecting.coordinator import Service
from rollout_service.collecting.evaluating import conditions
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError, ServiceError, WeightError, first_line
from rollout_service.gateway import messages, metrics, tokens, wire
from rollout_service.gateway.delivery import CursorError, Missing, Taken
from rollout_service.gateway.guard import Guard
from rollout_service.policy.replicas import ReplicaState, UpdateReport
from rollout_service.policy.weights import requested_update
from rollout_service.version import __version__

F = TypeVar("F", bound=Callable[..., Any])

MOST_WAIT_SECONDS = 600.0
"""Longest wait for a group in one request. A longer one would hide a reader that is gone."""

_STATUSES: tuple[tuple[type[RolloutError], int], ...] = (
    (Missing, HTTPStatus.NOT_FOUND),
    (CursorError, HTTPStatus.CONFLICT),
    (Taken, HTTPStatus.CONFLICT),
    (WeightError, HTTPStatus.CONFLICT),
    (ServiceError, HTTPStatus.SERVICE_UNAVAILABLE),
    (RolloutError, HTTPStatus.UNPROCESSABLE_ENTITY),
)

_Id = Annotated[str, Path(max_length=200, description="As POST /v1/collections returned it.")]
_Key = Annotated[
    str | None,
    Header(max_length=200, description="Any text: the same request sent again with the same key is done once."),
]
_Client = Annotated[
    str | None, Header(max_length=200, description="An id of the caller's own, see POST /v1/clients/renew.")
]


def api(service: Service, config: RolloutConfig, guard: Guard) -> ASGIApp:
    """The application.

    Args:
        service: the running service's actors.
        config: the settings that it runs with.
        guard: says which requests are allowed.
    """
    app = FastAPI(
        title="rollout-service",
        version=__version__,
        description="τ²-bench episodes as masked token trajectories, for trainers outside the cluster.",
        docs_url=None,
        redoc_url=None,
        default_response_class=Json,
        dependencies=[Security(HTTPBearer(auto_error=False))],
    )
    scopes: Scopes = {}
    streams = Streams(service.coordinator, config)
    _add_collections(app, scopes, streams, config)
    _add_reading(app, scopes, streams)
    _add_evaluations(app, scopes, streams, config)
    _add_samplers(app, scopes, service)
    _add_clients(app, scopes, streams)
    _add_looks(app, scopes, service, config)
    _add_weights(app, scopes, service, streams)
    _add_errors(app)
    return Door(app, app.router, scopes, guard, config.gateway)


def _needs(scopes: Scopes, scope: tokens.Scope) -> Callable[[F], F]:
    def mark(function: F) -> F:
        scopes[function] = scope
        return function

    return mark


def _owner(request: Request) -> str:
    holder: tokens.Holder = request.state.holder
    return holder.name


def _of_route(route: str, key: str | None) -> str | None:
    """The key of a request to another route than that of collections: a caller may use one key for both."""
    return None if key is None else f"{route}:{key}"


def client_id(client: str | None, key: str | None) -> str:
    """The client's id. One that names none is known by its key, so that it has the same one when it asks again."""
    return client or key or uuid.uuid4().hex


def _add_collections(app: FastAPI, scopes: Scopes, streams: Streams, config: RolloutConfig) -> None:
    collect = _needs(scopes, "collect")

    @app.post("/v1/collections", status_code=HTTPStatus.CREATED)
    @collect
    async def begin(
        request: Request, body: messages.CollectionBody, rollout_client: _Client = None, idempotency_key: _Key = None
    ) -> dict[str, Any]:
        """Begin a collection. It is cancelled if nobody asks for it, or says that the client is there, for long."""
        owner, asked = _owner(request), body.request(config.policy.sampling)
        known = client_id(rollout_client, idempotency_key)
        accepted = await streams.once(
            owner, idempotency_key, asked, streams.begin(asked, owner, known, idempotency_key)
        )
        return accepted.to_dict()

    @app.post("/v1/collections/{collection_id}/reopen")
    @collect
    async def reopen(
        request: Request,
        collection_id: _Id,
        judges: Annotated[bool | None, Query(description="Whether the reader drops groups; null: not known.")] = None,
        rollout_client: _Client = None,
    ) -> dict[str, Any]:
        """Read a collection of the same token whose reader is gone. The groups that were not acknowledged come, and are
        numbered anew. A reader whose last request is not as old as a lease is waited for."""
        known = rollout_client or uuid.uuid4().hex
        return (await streams.reopen(collection_id, _owner(request), known, judges)).to_dict()

    @app.delete("/v1/collections/{collection_id}", status_code=HTTPStatus.NO_CONTENT)
    @collect
    async def cancel(request: Request, collection_id: _Id, rollout_client: _Client = None) -> Response:
        """End a collection. Answers when nothing of it reaches the policy any more."""
        await streams.cancel(await streams.find(collection_id, _owner(request), rollout_client))
        return Response(status_code=HTTPStatus.NO_CONTENT)


def _add_reading(app: FastAPI, scopes: Scopes, streams: Streams) -> None:
    collect = _needs(scopes, "collect")

    @app.get(
        "/v1/collections/{collection_id}/groups",
        response_class=StreamingResponse,
        responses={200: {"content": {wire.NDJSON: {}, wire.ARROW: {}}, "description": "Groups, and how it goes on."}},
    )
    @collect
    async def groups(
        request: Request,
        collection_id: _Id,
        after: Annotated[int, Query(ge=0, description="Number of the last group that the reader has.")] = 0,
        limit: Annotated[int | None, Query(ge=1, description="Most groups; null: all.")] = None,
        wait: Annotated[
            float, Query(ge=0, le=MOST_WAIT_SECONDS, description="Seconds without a group until the answer ends.")
        ] = 60.0,
        acknowledged: Annotated[
            int | None, Query(ge=0, description="Groups up to this number are let go; null: those up to `after`.")
        ] = None,
        form: Annotated[Literal["ndjson", "arrow"], Query(description="NDJSON, or Arrow's stream format.")] = "ndjson",
        rollout_client: _Client = None,
    ) -> Response:
        """The groups after a number, as they complete. The last line or batch says how it goes on: `open` (ask again),
        `ended` or `failed`. What ends without it was cut: ask again after the last number that came whole."""
        stream = await streams.find(collection_id, _owner(request), rollout_client)
        stream.delivery.check(after)
        stream.delivery.acknowledge(after if acknowledged is None else acknowledged)
        writer: wire.Writer = wire.ArrowWriter() if form == "arrow" else wire.NdjsonWriter()
        return StreamingResponse(streams.groups(stream, after, limit, wait, writer), media_type=writer.media_type)

    @app.post("/v1/collections/{collection_id}/acknowledge", status_code=HTTPStatus.NO_CONTENT)
    @collect
    async def acknowledge(
        request: Request, collection_id: _Id, body: messages.AcknowledgeBody, rollout_client: _Client = None
    ) -> Response:
        """Let go of groups that the reader has, which makes room for more. Answers when they will not come again."""
        stream = await streams.find(collection_id, _owner(request), rollout_client)
        await streams.drop(stream, body.dropped)
        stream.delivery.acknowledge(body.number)
        stream.delivery.release(body.also)
        await stream.source.tell()
        return Response(status_code=HTTPStatus.NO_CONTENT)


def _add_evaluations(app: FastAPI, scopes: Scopes, streams: Streams, config: RolloutConfig) -> None:
    collect = _needs(scopes, "collect")
    evaluations = Evaluations(streams)

    @app.post("/v1/evaluations", status_code=HTTPStatus.CREATED)
    @collect
    async def evaluate(
        request: Request, body: messages.EvaluationBody, rollout_client: _Client = None, idempotency_key: _Key = None
    ) -> dict[str, Any]:
        """Play every task of a selection several times, and keep only the numbers. It goes on while somebody asks for
        its report."""
        owner, asked = _owner(request), body.request(config.policy.sampling)
        known = client_id(rollout_client, idempotency_key)
        key = _of_route("evaluations", idempotency_key)
        limits = conditions(config, asked.max_turns)
        accepted = await streams.once(owner, key, asked, evaluations.begin(asked, owner, known, key, limits))
        return {"evaluation_id": accepted.collection_id, "episodes": accepted.episodes}

    @app.get("/v1/evaluations/{evaluation_id}")
    @collect
    async def report(
        request: Request,
        evaluation_id: _Id,
        wait: Annotated[float, Query(ge=0, le=MOST_WAIT_SECONDS, description="Seconds to wait for its end.")] = 60.0,
    ) -> dict[str, Any]:
        """How an evaluation goes on (`open`, `ended` or `failed`), and its numbers so far: pass^k with 95% intervals
        over the tasks, and rewards by domain."""
        return await evaluations.report(evaluation_id, _owner(request), wait)

    @app.delete("/v1/evaluations/{evaluation_id}", status_code=HTTPStatus.NO_CONTENT)
    @collect
    async def end(request: Request, evaluation_id: _Id) -> Response:
        """End an evaluation. Answers when nothing of it reaches the policy any more."""
        await streams.cancel(await streams.find(evaluation_id, _owner(request)))
        return Response(status_code=HTTPStatus.NO_CONTENT)


def _add_samplers(app: FastAPI, scopes: Scopes, service: Service) -> None:
    collect = _needs(scopes, "collect")

    @app.post("/v1/samplers")
    @collect
    async def sampler(body: messages.SamplerBody) -> dict[str, Any]:
        """The state of the sampler of a selection, after it was changed as the request says. It is shared by all
        collections of the selection that have no seed."""
        return await answer(service.coordinator.sampler.remote(body.request, body.state, body.weights))


def _add_clients(app: FastAPI, scopes: Scopes, streams: Streams) -> None:
    collect = _needs(scopes, "collect")

    @app.post("/v1/clients/renew", status_code=HTTPStatus.NO_CONTENT)
    @collect
    async def renew(request: Request, body: messages.ClientBody) -> Response:
        """Say that a client is there, while it reads nothing."""
        await streams.heard(_owner(request), body.client)
        return Response(status_code=HTTPStatus.NO_CONTENT)

    @app.post("/v1/clients/leave", status_code=HTTPStatus.NO_CONTENT)
    @collect
    async def leave(request: Request, body: messages.ClientBody) -> Response:
        """End all collections of a client."""
        await streams.leave(_owner(request), body.client)
        return Response(status_code=HTTPStatus.NO_CONTENT)


def _add_looks(app: FastAPI, scopes: Scopes, service: Service, config: RolloutConfig) -> None:
    read = _needs(scopes, "read")
    settings = messages.settings_of(config)

    @app.get("/v1/status")
    @read
    async def status() -> dict[str, Any]:
        """Counts of what the service holds and does."""
        return await answer(service.coordinator.status.remote())

    @app.get("/v1/metrics", response_class=Response)
    @read
    async def numbers(
        form: Annotated[
            Literal["prometheus", "json"], Query(description="Text for Prometheus, or JSON.")
        ] = "prometheus",
    ) -> Any:
        """The metrics, by the names of docs/metrics.md."""
        readings = await answer(service.coordinator.metrics.remote())
        if form == "json":
            return Json([asdict(reading) for reading in readings])
        status = await answer(service.coordinator.status.remote())
        return Response(metrics.prometheus(readings, status), media_type=metrics.CONTENT_TYPE)

    @app.get("/v1/configuration")
    @read
    async def configuration() -> dict[str, Any]:
        """The settings that the service was started with, without what was left at its default."""
        return settings

    @app.get("/v1/weights")
    @read
    async def version() -> dict[str, int]:
        """Version of the weights that the service was given last."""
        return {"version": await answer(service.fleet.weight_version.remote(), "fleet")}

    @app.get("/v1/replicas")
    @read
    async def replicas() -> list[ReplicaState]:
        """State of each policy replica."""
        return await answer(service.fleet.replicas.remote(), "fleet")


def _add_weights(app: FastAPI, scopes: Scopes, service: Service, streams: Streams) -> None:
    weights = _needs(scopes, "weights")

    @app.post("/v1/weights")
    @weights
    async def update(request: Request, body: messages.WeightsBody, idempotency_key: _Key = None) -> UpdateReport:
        """Give every policy replica new weights, while episodes run. Answers when the replicas serve them."""
        key = _of_route("weights", idempotency_key)
        return await streams.once(_owner(request), key, body, _updated(service, body))

    @app.post("/v1/pause")
    @weights
    async def pause(request: Request, body: messages.PauseBody) -> list[ReplicaState]:
        """Stop sampling in every replica. Answers when they have stopped."""
        return await streams.once(_owner(request), None, body, _paused(service, body))

    @app.post("/v1/resume")
    @weights
    async def resume() -> list[ReplicaState]:
        """Go on sampling."""
        return await answer(service.fleet.resume.remote(), "fleet")


async def _paused(service: Service, body: messages.PauseBody) -> list[ReplicaState]:
    return await answer(service.fleet.pause.remote(body.mode), "fleet")


async def _updated(service: Service, body: messages.WeightsBody) -> UpdateReport:
    if not body.path.startswith("/"):
        raise WeightError(f"path is {body.path!r}.", "Give the absolute path of a folder that the replicas can read.")
    version = body.version
    if version is None:
        version = await answer(service.fleet.weight_version.remote(), "fleet") + 1
    update = requested_update(body.path, version, body.mode, None, None)
    return await answer(service.fleet.update_weights.remote(update), "fleet")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RolloutError)
    async def refused(request: Request, what: RolloutError) -> Response:
        return error(next(status for kind, status in _STATUSES if isinstance(what, kind)), what)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, what: RequestValidationError) -> Response:
        first = what.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return error(HTTPStatus.UNPROCESSABLE_ENTITY, RolloutError(f"{where}: {first['msg']}.", "See /openapi.json."))

    @app.exception_handler(HTTPException)
    async def http(request: Request, what: HTTPException) -> Response:
        return error(what.status_code, ServiceError(f"{what.detail}."), dict(what.headers or {}))

    @app.exception_handler(Exception)
    async def broken(request: Request, what: Exception) -> Response:
        problem = ServiceError(f"The service failed: {first_line(what)}", "See the cluster's logs.")
        return error(HTTPStatus.INTERNAL_SERVER_ERROR, problem)
