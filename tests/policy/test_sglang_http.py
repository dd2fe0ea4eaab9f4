"""The client of an SGLang endpoint, where that is a router before servers that are not equally new."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from rollout_service.config.sampling import Sampling
from rollout_service.errors import EpisodeFault, FaultKind, boundary
from rollout_service.policy.base import Generation, RequestError, TurnInfo
from rollout_service.policy.sglang_http import SglangHttpPolicy
from tests.support.slime_router import Router

PROMPT = np.asarray([5, 6], dtype=np.int32)


async def asked(versions: list[int], min_version: int, retry_seconds: float = 5.0) -> tuple[Generation, int]:
    """A turn of an endpoint whose answers are of these versions, and how often it was asked for."""
    left = iter(versions)

    async def engine(prompt, sampling) -> Generation:
        router.version = next(left)
        return Generation(np.asarray([9], np.int32), np.zeros(1, np.float32), np.zeros(1, np.int32), "stop", 2)

    with Router(engine) as router:
        policy = SglangHttpPolicy(router.url, retry_seconds)
        try:
            turn = await policy.generate(PROMPT, Sampling(), "session", TurnInfo(min_version=min_version))
        finally:
            await policy.aclose()
        return turn, len(router.requests)


async def test_a_turn_by_weights_that_are_too_old_is_asked_for_again():
    turn, times = await asked([3, 4, 5], min_version=5)
    assert turn.weight_versions.tolist() == [5]
    assert times == 3


async def test_an_endpoint_that_stays_too_old_is_an_error_with_both_versions():
    with pytest.raises(ValueError, match="version 3, older than 5"):
        await asked([3] * 20, min_version=5, retry_seconds=0.1)


async def test_what_an_endpoint_refuses_is_asked_for_once_and_no_other_attempt_mends_it():
    async def engine(prompt, sampling) -> Generation:
        pytest.fail("it was sampled")

    with Router(engine) as router:
        router.refuses = True
        policy = SglangHttpPolicy(router.url, 60)
        with pytest.raises(RequestError, match="answered 400"):
            await policy.generate(PROMPT, Sampling(), "session", TurnInfo())
        with pytest.raises(EpisodeFault) as raised, boundary(FaultKind.POLICY):
            await policy.generate(PROMPT, Sampling(), "session", TurnInfo())
        await policy.aclose()
        assert len(router.requests) == 2
    assert raised.value.fault.retryable is False


async def test_a_turn_that_ends_every_server_behind_an_endpoint_is_asked_for_three_times():
    connections = 0

    async def dies(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        head = await reader.readuntil(b"\r\n\r\n")
        connections += b"/generate" in head
        writer.close()

    async with await asyncio.start_server(dies, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        policy = SglangHttpPolicy(f"http://127.0.0.1:{port}", 60)
        with pytest.raises(EpisodeFault, match="3 engines died while they had this turn") as raised:
            await policy.generate(PROMPT, Sampling(), "session", TurnInfo())
        await policy.aclose()
    assert (raised.value.fault.retryable, connections) == (False, 3)
