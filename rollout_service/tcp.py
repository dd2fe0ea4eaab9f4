"""Whether a server listens, found out before anything depends on it."""

from __future__ import annotations

import socket
import urllib.parse

_CONNECT_SECONDS = 10.0


def is_url(address: object) -> bool:
    """Whether an address is a URL, as that of a gateway is, and not the address of a Ray cluster."""
    return isinstance(address, str) and address.strip().lower().startswith(("http://", "https://"))


def check_free(host: str, port: int) -> None:
    """Check that a server could listen here, on this machine.

    Raises:
        OSError: another one does, or the address is not this machine's.
    """
    if not port:  # any free one
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: connections that end do not count
        probe.bind((host, port))
        probe.listen()


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
