"""The gateway over HTTPS on Ray Serve's own proxy. A cluster has one proxy, so this needs a cluster of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from rollout_service.gateway.tokens import digest_of
from tests.support.clients import NO_REPLICA
from tests.support.commands import environment
from tests.support.gateway import TOKENS, self_signed
from tests.support.services import free_port

_PROGRAM = """
import json, sys
from rollout_service.client import RolloutClient
from tests.support.episodes import settings

url, overrides = sys.argv[1], json.loads(sys.argv[2])
with RolloutClient(config=settings(**overrides)):
    with RolloutClient(url, token_var="GATEWAY_TOKEN") as outside:
        print("slots:", outside.status()["slots"])
    try:
        RolloutClient(url.replace("https", "http"), token_var="GATEWAY_TOKEN")
    except Exception as error:
        print("without TLS:", error)
"""


def test_ray_serve_s_proxy_serves_the_gateway_over_tls_and_nothing_without_it(tmp_path):
    certificate, key = self_signed(tmp_path)
    tokens, port = tmp_path / "tokens.yaml", free_port()
    tokens.write_text(f'trainer: {{sha256: "{digest_of(TOKENS["all"])}", scopes: [read]}}\n')
    overrides = NO_REPLICA | {
        "service__actors": 1,
        "service__slots": 3,
        "tasks__domain": "mock",
        "gateway__port": port,
        "gateway__tokens_file": str(tokens),
        "gateway__tls_certificate": str(certificate),
        "gateway__tls_key": str(key),
    }
    asked = [f"https://127.0.0.1:{port}", json.dumps(overrides)]
    known = environment() | {
        "GATEWAY_TOKEN": TOKENS["all"],
        "SSL_CERT_FILE": str(certificate),
        "PYTHONPATH": os.getcwd(),
    }
    known = {
        name: value for name, value in known.items() if not name.startswith("RAY_AUTH")
    }  # those of another cluster
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *asked], capture_output=True, text=True, timeout=200, check=False, env=known
    )
    assert ended.returncode == 0, ended.stderr
    assert "slots: 3" in ended.stdout
    assert "without TLS: The gateway at http://127.0.0.1" in ended.stdout
