"""Free ports for servers that another program starts a little later.

They lie below those that Linux gives to connections, and above those of Ray's workers. In either range somebody else
may have taken the port by then. A process gives no port twice. Two processes rarely give the same one.
"""

from __future__ import annotations

import contextlib
import random
import socket

_RANGE = range(20_000, 32_768)
_random = random.SystemRandom()  # a fork draws other ports than its parent
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody has on any of this machine's IPv4 addresses."""
    while True:
        port = _random.choice(_RANGE)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            if port not in _given:
                _given.add(port)
                return port
