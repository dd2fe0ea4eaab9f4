"""Free ports for servers that another program starts a little later.

They lie below those that Linux gives to connections, and above those of Ray's workers. In either range somebody else
may have taken the port by then. No process gives a port twice.
"""

from __future__ import annotations

import contextlib
import random
import socket

_random = random.SystemRandom()  # processes that draw at the same time draw different ports
_left = [*range(20_000, 32_768)]
_random.shuffle(_left)


def free_port() -> int:
    """A port that nobody has on any of this machine's addresses."""
    while True:
        port = _left.pop()
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
