"""A client that starts Ray itself, in a process of its own: from a running event loop, and with the gateway over HTTPS.

A cluster has one proxy of Ray Serve, so HTTPS on it needs a cluster of its own. Both tests share one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from rollout_service.gateway.tokens import digest_of
from tests.support.commands import environment
from tests.support.gateway import TOKENS, self_signed
from tests.support.ports import free_port

_PROGRAM = """
import asyncio, json, sys
from rollout_service import RolloutClient
from tests.support.episodes import settings
from tests.support.workers.cluster import worker_scripts

def visit(url):
    with RolloutClient(url, token_var="GATEWAY_TOKEN") as outside:
        print("slots:", outside.status()["slots"])
    try:
        RolloutClient(url.replace("https", "http"), token_var="GATEWAY_TOKEN")
    except Exception as error:
        print("without TLS:", error)

async def main(url, overrides):
    ticks = 0
    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)
    ticker = asyncio.create_task(tick())
    async with await RolloutClient.astart(config=settings(**overrides)) as client:
        print("ticks", ticks)
        print("rewards", [t.reward for t in await client.acollect(2)])
        await asyncio.to_thread(visit, url)
    ticker.cancel()

with worker_scripts():
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def ended(forks, tmp_path_factory) -> subprocess.CompletedProcess[str]:
    """The program."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = self_signed(folder)
    tokens, port = folder / "tokens.yaml", free_port()
    tokens.write_text(f'trainer: {{sha256: "{digest_of(TOKENS["all"])}", scopes: [read]}}\n')
    overrides = {
        "service__actors": 1,
        "service__slots": 3,
        "tasks__domain": "mock",
        "gateway__port": port,
        "gateway__tokens_file": str(tokens),
        "gateway__tls_certificate": str(certificate),
        "gateway__tls_key": str(key),
    }
    asked = [f"https://127.0.0.1:{port}", json.dumps(overrides)]
    own = {
        name: value for name, value in environment().items() if not name.startswith("RAY_AUTH")
    }  # of another cluster
    known = own | forks | {"GATEWAY_TOKEN": TOKENS["all"], "SSL_CERT_FILE": str(certificate)}
    known["PYTHONPATH"] = os.getcwd()
    command = [sys.executable, "-c", _PROGRAM, *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=known)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_client_is_started_from_a_running_loop_that_goes_on_meanwhile(ended):
    ticks, rewards, *_ = ended.stdout.splitlines()
    assert rewards == "rewards [1.0, 1.0]"
    assert int(ticks.split()[1]) > 20, "a loop that stood still ticked once or twice"


def test_ray_serve_s_proxy_serves_the_gateway_over_tls_and_nothing_without_it(ended):
    assert "slots: 3" in ended.stdout
    assert "without TLS: The gateway at http://127.0.0.1" in ended.stdout
