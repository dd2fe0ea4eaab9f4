"""Processes in reserve: the first ones that multiprocessing spawns here have been forked before.

A process that is spawned imports everything again, which takes SGLang ten CPU seconds. A fork has it all, but must be
made before this process has threads.

Invariant: what is spawned is a child of this process, with the arguments, environment, folder and descriptors that it
would have otherwise. Further ones are spawned in the ordinary way.
"""

from __future__ import annotations

import fcntl
import json
import multiprocessing.spawn
import multiprocessing.util
import os
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

_LONGEST = 1 << 17
"""Bytes of an order."""


def keep(count: int = 1) -> None:
    """Have so many in reserve."""
    kept = [_forked() for _ in range(count)]
    ordinary = multiprocessing.util.spawnv_passfds

    def spawn(path: str, arguments: Sequence[str | bytes], descriptors: Sequence[int]) -> int:
        is_process = "--multiprocessing-fork" in arguments  # which the tracker of resources is not
        if not (kept and is_process):
            return ordinary(path, arguments, descriptors)
        pid, orders = kept.pop()
        numbers = [0, 1, 2, *map(int, descriptors)]
        order = {"arguments": [*map(os.fsdecode, arguments)], "numbers": numbers}
        order |= {"variables": {**os.environ}, "folder": os.getcwd()}
        with orders:
            socket.send_fds(orders, [json.dumps(order).encode()], numbers)
        return pid

    multiprocessing.util.spawnv_passfds = spawn


def _forked() -> tuple[int, socket.socket]:
    """One that waits: its process id, and where its order goes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        _wait(theirs)
    theirs.close()
    return pid, ours


def _wait(orders: socket.socket) -> NoReturn:
    """Become what is ordered; nothing is when the other process has ended."""
    with orders:
        received, held, _, _ = socket.recv_fds(orders, _LONGEST, 64)
    if not received:
        os._exit(0)
    order = json.loads(received)
    numbers: list[int] = order["numbers"]
    beyond = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, max(numbers) + 1) for descriptor in held]
    for descriptor in held:
        os.close(descriptor)
    for descriptor, number in zip(beyond, numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(order["variables"])
    os.chdir(order["folder"])
    program = order["arguments"].index("-c")
    sys.argv = ["-c", *order["arguments"][program + 2 :]]
    exec(order["arguments"][program + 1])
    sys.exit()
