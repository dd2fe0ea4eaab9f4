"""Whether a server listens, found out before anything depends on it."""

from __future__ import annotations

import socket
import urllib.parse

_CONNECT_SECONDS = 10.0


def is_url(address: object) -> bool:
    """Whether an address is a URL, as that of a gateway is, and not the address of a Ray cluster."""
    return isinstance(address, str) and address.strip().lower().startswith(("http://", "https://"))


def check_listening(address: str) -> None:
    """Connect once to a URL or to `host:port`; nothing is sent. Without a port it is 80, or 443 for https.

    Raises:
        OSError: nothing listens there.
        ValueError: the address has no host, or its port is not a port.
    """
    parts = urllib.parse.urlsplit(address if "://" in address else f"//{address}")
    if not parts.hostname:
        raise ValueError("it has no host; write http://host:port")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname, port), timeout=_CONNECT_SECONDS).close()
