"""The gateway's door: what happens to a request before its route sees it.

Invariant: nothing of a request's body is read before its token was checked, and no more of it than the limits allow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from starlette.routing import Match, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rollout_service.config import Gateway
from rollout_service.errors import RolloutError, ServiceError
from rollout_service.gateway import tokens
from rollout_service.gateway.guard import Guard
from rollout_service.gateway.wire import of_error
from rollout_service.record.encoding import to_json

Scopes = dict[Callable[..., Any], tokens.Scope]
"""The scope that each route's function needs."""


class Door:
    """ASGI middleware around the gateway's routes. The token's holder is in `request.state.holder` for them."""

    def __init__(self, app: ASGIApp, routes: Router, scopes: Scopes, guard: Guard, limits: Gateway) -> None:
        self._app = app
        self._routes = routes
        self._scopes = scopes
        self._guard = guard
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request in, or answer it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return  # there is no such route; the server closes it
            await self._app(scope, receive, send)
            return
        try:
            authorization = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
            holder = await self._guard.admit(authorization or None, self._needed(scope))
            body = await self._body(scope, receive)
        except tokens.Refusal as refusal:
            await error(refusal.status, ServiceError(str(refusal)), refusal.headers)(scope, receive, send)
            return
        except _TooMuch as refusal:
            await error(refusal.status, ServiceError(str(refusal)))(scope, receive, send)
            return
        scope.setdefault("state", {})["holder"] = holder
        await self._app(scope, _replayed(body, receive), send)

    def _needed(self, scope: Scope) -> tokens.Scope | None:
        """The scope that the route needs; None: there is no such route."""
        for route in self._routes.routes:
            if route.matches(scope)[0] is Match.FULL:
                return self._scopes.get(getattr(route, "endpoint", None))  # type: ignore[arg-type]
        return None

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body.

        Raises:
            _TooMuch: it is too long or too slow, or ended early.
        """
        largest, seconds = self._limits.body_bytes, self._limits.body_seconds
        too_large = _TooMuch(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body has more than gateway.body_bytes={largest}: send less."
        )
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and (len(declared) > len(str(largest)) or int(declared) > largest):
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _TooMuch(HTTPStatus.BAD_REQUEST, f"The body ended after {size} bytes.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > largest:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            said = f"The body did not come in gateway.body_seconds={seconds:g}."
            raise _TooMuch(HTTPStatus.REQUEST_TIMEOUT, said) from None


class _TooMuch(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body again, and then what comes after it."""
    left = [body]

    async def again() -> Message:
        return {"type": "http.request", "body": left.pop(), "more_body": False} if left else await receive()

    return again


class Json(Response):
    """JSON that may hold any text, lone surrogates too."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of the content."""
        return to_json(content)


def error(status: int, what: RolloutError, headers: dict[str, str] | None = None) -> Response:
    """The answer about an error."""
    return Json({"error": of_error(what)}, status, headers)
