"""Ray's random ids in forks.

Invariant: no two forks of a process make an id alike. Ray's generator takes its seed from the system at the first id
that a process makes. Forks of a process that has made one go on alike, in all their threads, and Ray ends a process in
which two calls have one id. So a process that is to be forked makes none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import ray.actor


@contextlib.contextmanager
def unmade() -> Iterator[None]:
    """Within it, a process that is to be forked imports what it needs: classes of actors take their ids elsewhere."""
    ordinary = ray.actor.ActorClassID
    of_the_system = SimpleNamespace(from_random=lambda: ordinary(os.urandom(ordinary.size())))
    with mock.patch.object(ray.actor, "ActorClassID", of_the_system):
        yield
    assert _of_a_fork() != _of_a_fork(), "an import has made a random id: forks would make the same ones"


def _of_a_fork() -> bytes:
    """The first id that a fork makes."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, ray.ObjectRef.from_random().binary())
        os._exit(0)
    os.waitpid(pid, 0)
    made = os.read(reading, ray.ObjectRef.size())
    for descriptor in (reading, writing):
        os.close(descriptor)
    return made
