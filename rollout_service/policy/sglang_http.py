"""The policy behind any SGLang-compatible `/generate`: one server, or a router before several.

Invariant: a turn is sent again only if nothing of it was recorded, because the endpoint did not accept it or its answer
was lost. A request that the endpoint refuses is not repeated. An interrupted turn continues from its tokens. A turn
that was sampled by weights that are too old is discarded and sent again. If the endpoint says that a prompt is too
long, the episode ends, see `rollout_service.policy.overlong`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import uuid
from http import HTTPStatus

import aiohttp
import numpy as np
import numpy.typing as npt

from rollout_service.background import BackgroundTasks
from rollout_service.config.sampling import Sampling
from rollout_service.errors import first_line
from rollout_service.policy.base import Generation, RequestError, TurnInfo
from rollout_service.policy.overlong import fitted
from rollout_service.policy.patience import BUSY, DeadEngineError, LostTurnError, Patience
from rollout_service.policy.resume import resumed
from rollout_service.policy.sglang_format import from_answer, to_payload
from rollout_service.redaction import redact

_ABORT_SECONDS = 5.0


class SglangHttpPolicy:
    """Samples over HTTP. Use it in one event loop, where it opens its connections at the first call."""

    def __init__(self, url: str, retry_seconds: float = 120.0) -> None:
        """
        Args:
            url: the server's or router's address, without `/generate`.
            retry_seconds: how long one turn is retried while the endpoint cannot accept it.
        """
        self._url = url.rstrip("/")
        self._patience = Patience(retry_seconds)
        self._tasks = BackgroundTasks()

    @functools.cached_property
    def _session(self) -> aiohttp.ClientSession:
        # No limit on connections or time: the episode bounds its turns, and the engine has a queue.
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)
        )

    async def generate(
        self, input_ids: npt.NDArray[np.int32], sampling: Sampling, session_id: str, info: TurnInfo
    ) -> Generation:
        """Sample one turn, see `Policy`. Cancelling it aborts the request in the engine."""
        least = info.min_version

        async def sample(prompt: npt.NDArray[np.int32], how: Sampling) -> Generation:
            async def ask(fitting: Sampling) -> Generation:
                once = functools.partial(self._ask, prompt, fitting, session_id, least)
                return await self._patience.retry_lost_turn(once)

            return await fitted(ask, how, len(prompt))

        return await resumed(sample, input_ids, sampling)

    async def aclose(self) -> None:
        """Close the connections."""
        if "_session" in self.__dict__:
            await self._session.close()

    async def _ask(self, prompt: npt.NDArray[np.int32], sampling: Sampling, session_id: str, least: int) -> Generation:
        rid = f"{session_id}-{uuid.uuid4().hex[:8]}"
        # SGLang's router keeps sessions together by the first header, Ray Serve by the second.
        headers = {"x-smg-routing-key": session_id, "x-session-id": session_id}
        try:
            async with self._session.post(
                f"{self._url}/generate", json=to_payload(prompt, sampling, rid), headers=headers
            ) as response:
                if response.status in BUSY:
                    raise LostTurnError from ConnectionError(await _said(response, self._url))
                if HTTPStatus.BAD_REQUEST <= response.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise RequestError(await _said(response, self._url))
                if response.status != HTTPStatus.OK:
                    raise ValueError(await _said(response, self._url))
                part = from_answer(await response.json(content_type=None))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise LostTurnError from ConnectionError(f"{self._url} cannot be reached: {first_line(error)}")
        except (aiohttp.ClientError, OSError) as error:  # the engine had the turn
            self._abort(rid)
            raise DeadEngineError(rid) from ConnectionError(f"{self._url} was lost: {first_line(error)}")
        except asyncio.CancelledError:
            self._abort(rid)
            raise
        if len(part.token_ids) and part.weight_versions.min() < least:  # this server has not been updated yet
            raise LostTurnError from ValueError(
                f"{self._url} sampled with weights of version {part.weight_versions.min()}, older than {least}"
            )
        return part

    def _abort(self, rid: str) -> None:
        """Abort the request in the engine, which would notice a closed connection seconds later, or never behind a
        router."""
        self._tasks.start(self._post_abort(rid), "aborting a request at the policy's endpoint")

    async def _post_abort(self, rid: str) -> None:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            timeout = aiohttp.ClientTimeout(total=_ABORT_SECONDS)
            async with self._session.post(f"{self._url}/abort_request", json={"rid": rid}, timeout=timeout):
                pass


async def _said(response: aiohttp.ClientResponse, url: str) -> str:
    text = (await response.text()).strip()
    return f"{url} answered {response.status} {response.reason}: {redact(text, 500)}"
