"""The gateway's application on a server in this process, in front of a real service."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.gateway_api import api
from rollout_service.client import RolloutClient
from rollout_service.config import RolloutConfig
from rollout_service.gateway.guard import Guard
from rollout_service.gateway.tokens import SCOPES, Tokens, digest_of, new_token, parsed

TOKENS = {name: new_token() for name in ("all", "other", *SCOPES)}
"""Tokens by their holders' names: `all` and `other` allow everything, the others the scope that they are named for."""

KNOWN = Tokens(
    parsed(
        "\n".join(
            f'{name}: {{sha256: "{digest_of(token)}", scopes: [{name if name in SCOPES else ", ".join(SCOPES)}]}}'
            for name, token in TOKENS.items()
        ),
        "test",
    )
)


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {TOKENS[name]}"}


def self_signed(folder: Path, days: float = 1.0) -> tuple[Path, Path]:
    """The files of a certificate for 127.0.0.1 that vouches for itself and is valid for so many days, and of its key.

    Args:
        days: below 0: it has expired.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


@contextlib.contextmanager
def serving(client: RolloutClient, tls: tuple[Path, Path] | None = None, **gateway: float) -> Iterator[str]:
    """URL of the gateway of the client's service, below which its routes are."""
    settings = RolloutConfig.load(overrides={"gateway": {"port": 0} | gateway}, environ={}).gateway
    config = client.config.model_copy(update={"gateway": settings})
    made = threading.Event()
    servers: list[uvicorn.Server] = []

    route = f"/{client.config.service.name}"

    async def app(scope, receive, send) -> None:
        if scope.get("path", "").startswith(route):  # as Serve has it; tests of routes leave it out
            scope = scope | {"root_path": route}
        await applications[0](scope, receive, send)

    applications = []

    async def start() -> None:
        applications.append(api(client._service, config, Guard(KNOWN, settings.requests_per_second)))
        files = {} if tls is None else {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]}
        options = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, **files)
        servers.append(uvicorn.Server(options))
        made.set()
        await servers[0].serve(sockets=[listening])

    with socket.socket(proto=socket.IPPROTO_TCP) as listening:  # else asyncio leaves out TCP_NODELAY
        listening.bind(("127.0.0.1", 0))
        listening.listen(512)
        thread = threading.Thread(target=lambda: asyncio.run(start()), daemon=True)
        thread.start()
        assert made.wait(120)
        scheme = "http" if tls is None else "https"
        yield f"{scheme}://127.0.0.1:{listening.getsockname()[1]}"
        servers[0].should_exit = servers[0].force_exit = True
        thread.join(120)
