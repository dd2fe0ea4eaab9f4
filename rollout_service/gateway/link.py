"""Link: requests to a gateway, from any thread.

Invariant: a request that got no whole answer is sent again until its time is up, so requests must be safe to send
twice. What the gateway refuses is raised as the service's own error and is not sent again. The token is in no error.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar

import aiohttp

from rollout_service.cluster import Call
from rollout_service.errors import RolloutError, ServiceError, first_line
from rollout_service.gateway.wire import to_error

T = TypeVar("T")

_CONNECT_SECONDS = 10.0

_READ_SECONDS = 120.0
"""Silence after which a connection counts as lost. The gateway waits for a group no longer than `WAIT_SECONDS`."""

WAIT_SECONDS = 30.0

CLIENT_HEADER = "rollout-client"
"""Header with the client's id. By it a gateway knows a client whose collection another one has taken over."""

_PAUSES = (0.1, 5.0)
"""Shortest and longest pause in seconds before a request is sent again; it doubles each time."""

_LATER = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT}
"""Answers of a gateway, or of a proxy in front of it, after which the same request may succeed."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    method: str
    path: str
    """Below the gateway's address, such as `/v1/status`."""
    body: Any = None
    """JSON values; None: no body."""
    query: dict[str, str] | None = None
    headers: dict[str, str] | None = None
    patience: float = 60.0
    """Seconds for which it is sent again while no whole answer comes."""


class Link:
    """Connections to one gateway, on an event loop in a thread of its own."""

    def __init__(self, url: str, token: str | None, client: str) -> None:
        """
        Args:
            url: address of the gateway, below which its routes are.
            token: None: none is sent.
            client: id of the client, which is sent with each request.
        """
        self.url = url
        self._headers = {CLIENT_HEADER: client} | ({} if token is None else {"authorization": f"Bearer {token}"})
        self._session: aiohttp.ClientSession | None = None
        self._closing = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout-gateway", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, T]) -> Call[T]:
        """Run it on the link's loop. Whoever waits for it when the link is closed gets a `ServiceError`.

        Raises:
            ServiceError: the link is closed.
        """
        with self._closing:
            if self._closed:
                work.close()
                raise _closed()
            return Call(asyncio.run_coroutine_threadsafe(_until_closed(work), self._loop))

    async def ask(self, ask: Ask, read: Callable[[bytes], T]) -> T:
        """Send the request, again if need be; returns what `read` makes of the answer's body. `read` runs in another
        thread, and raises ValueError if the body is not whole.

        Raises:
            RolloutError: the gateway refused it, or gave no whole answer in time.
        """
        until = time.monotonic() + ask.patience
        pause = _PAUSES[0]
        while True:
            try:
                return await self._once(ask, read)
            except _Lost as lost:
                wait = max(lost.wait, pause * random.uniform(0.5, 1.0))
                if time.monotonic() + wait > until:
                    raise ServiceError(
                        f"The gateway at {self.url} gave no answer in {ask.patience:g} s: {lost}.",
                        "Check the address, the network and the service.",
                    ) from None
                await asyncio.sleep(wait)
                pause = min(2 * pause, _PAUSES[1])

    async def _once(self, ask: Ask, read: Callable[[bytes], T]) -> T:
        if self._session is None:
            # No limit on time or connections: streams wait, and each has a connection of its own. The TLS context is
            # made here, because the one that aiohttp made when it was imported may not know SSL_CERT_FILE.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS)
            connector = aiohttp.TCPConnector(limit=0, ssl=ssl.create_default_context())
            self._session = aiohttp.ClientSession(
                headers=self._headers, timeout=timeout, trust_env=True, connector=connector
            )
        try:
            async with self._session.request(
                ask.method, self.url + ask.path, json=ask.body, params=ask.query, headers=ask.headers
            ) as response:
                body = await response.read()
        except aiohttp.ClientConnectorCertificateError as error:
            raise ServiceError(
                f"The certificate of {self.url} is not trusted: {first_line(error)}.",
                "Name the file of its authority in SSL_CERT_FILE.",
            ) from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise ServiceError(f"{self.url} is not the address of a gateway.", "Write https://host:port.") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _Lost(first_line(error)) from None
        if response.status == HTTPStatus.UNAUTHORIZED and "authorization" not in self._headers:
            raise ServiceError(
                f"{self.url} wants a token.",
                "Name the environment variable that holds it in token_var, or with --token-var.",
            )
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise _refusal(response, body)
        try:
            return await asyncio.to_thread(read, body)
        except ValueError as error:
            raise _Lost(first_line(error)) from None

    def close(self) -> None:
        """End every request and connection. Closing again does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True

        async def end() -> None:
            requests = asyncio.all_tasks() - {asyncio.current_task()}
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
            if self._session is not None:
                await self._session.close()

        with contextlib.suppress(concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(_CONNECT_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CONNECT_SECONDS)


def _closed() -> ServiceError:
    return ServiceError("This client is closed.", "Make another RolloutClient.")


async def _until_closed(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except asyncio.CancelledError:  # by `close`: an interrupted wait does not end a call
        raise _closed() from None


class _Lost(Exception):
    """No whole answer came; `wait` are the seconds after which the gateway wants to be asked again."""

    def __init__(self, said: str, wait: float = 0.0) -> None:
        super().__init__(said.rstrip("."))
        self.wait = wait


def _refusal(response: aiohttp.ClientResponse, body: bytes) -> RolloutError | _Lost:
    try:
        content = json.loads(body)["error"]
    except (ValueError, TypeError, KeyError):
        content = None
    if response.status in _LATER or (response.status >= HTTPStatus.INTERNAL_SERVER_ERROR and content is None):
        asked = response.headers.get("retry-after", "0")
        return _Lost(f"status {response.status}", float(asked) if asked.isdecimal() else 0.0)
    if content is None:
        return ServiceError(
            f"{response.url.origin()} answered with status {response.status}, and not as a gateway does.",
            "Check the address and service.name.",
        )
    return to_error(content)
