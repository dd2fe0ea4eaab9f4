"""Episodes recorded with a server that fails now and then, and replayed by another service after the server is gone.

The server is a real one on this machine. It takes its time, words no answer twice the same and draws new ids for its
calls, so a replay is equal only if every answer comes from the tape.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from rollout_service.client import RolloutClient
from rollout_service.record.trajectory import Trajectory
from rollout_service.tau2 import compat, tasks
from tests.benchmarks.measure import Row, show
from tests.support import openai_server as server
from tests.support.episodes import settings
from tests.support.openai_server import Exchange, OpenAIServer, Request
from tests.support.trajectories import without_times

_EPISODES = 100
"""Episodes of each domain."""

_MODEL = "openai/gpt-4.1-mini"

_OF_THE_COLLECTION = ("trajectory_id", "collection_id", "group_id")


def run() -> bool:
    """Record and replay both domains."""
    rows = [_row(domain) for domain in ("retail", "telecom")]
    return show(f"{_EPISODES} episodes recorded and replayed", rows)


def _row(domain: str) -> Row:
    by_scenario = {str(task.user_scenario): task for task in map(tasks.get, tasks.references(domain))}
    played = list(by_scenario.values())[: _EPISODES // 2]  # the server knows a task by its scenario
    with tempfile.TemporaryDirectory() as folder:
        tape = Path(folder) / "tape"
        with OpenAIServer(server.gold_user(played), _schedule) as api:
            recorded, slow = _collect(played, domain, tape, "record", api.base_url)
            asked = len(api.requests)
        replayed, fast = _collect(played, domain, tape, "replay", api.base_url)
        size = sum(path.stat().st_size for path in tape.rglob("*.json*"))
        equal = sum(_plain(one) == _plain(other) for one, other in zip(recorded, replayed, strict=True))
    said = [message for each in recorded for message in each.messages if message["role"] == "user"]
    calls = sum(bool(message.get("tool_calls")) for message in said)
    failed = sum(each.user_usage.failed_requests for each in recorded)
    cost = sum(each.user_usage.cost_usd or 0.0 for each in recorded)
    return Row(
        f"{domain}: {asked} requests ({failed} failed), {calls} of the user's turns with calls, {size / 1e6:.1f} MB",
        f"{_EPISODES / fast:.1f} episodes/s, $0",
        f"{_EPISODES / slow:.1f} episodes/s, ${cost:.4f}",
        f"{equal} of {_EPISODES} equal",
        "all equal",
        equal == _EPISODES == sum(each.reward == 1.0 for each in recorded),
    )


def _collect(played: list[compat.Task], domain: str, tape: Path, mode: str, url: str) -> tuple[list[Trajectory], float]:
    """The trajectories in order, and seconds."""
    config = settings(
        tasks__domain=domain,
        tasks__ids=[str(task.id) for task in played],
        user__model=_MODEL,
        user__base_url=url,
        tape__path=str(tape),
        tape__mode=mode,
        service__max_buffered_groups=_EPISODES,
    )
    with RolloutClient(config=config) as client:
        begun = time.perf_counter()
        batch = client.collect(_EPISODES, group_size=2, seed=7, progress=False)
        seconds = time.perf_counter() - begun
    return sorted(batch, key=lambda each: (each.task, each.seed, each.sample_index)), seconds


def _plain(trajectory: Trajectory) -> dict[str, Any]:
    """All of a trajectory but its times and the names of its collection."""
    record = without_times(trajectory)
    return {name: value for name, value in record.items() if name not in _OF_THE_COLLECTION}


def _schedule(request: Request) -> server.Behaviour:
    kinds = {3: server.empty, 17: server.failing(500), 31: server.malformed_tool_call}
    return kinds.get(request.number % 40, _varied)


async def _varied(exchange: Exchange) -> web.StreamResponse:
    await asyncio.sleep(random.uniform(0.2, 0.6))
    number = exchange.request.number
    reply: dict[str, Any] = exchange.reply()
    for call in reply.get("tool_calls") or []:
        call["id"] = f"call_{number}"
    if reply.get("content") and reply["content"] not in compat.STOP_SIGNALS:
        reply["content"] += f" (So I said {number} times.)"
    return web.json_response(exchange.completion(reply))
