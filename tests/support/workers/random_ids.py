"""Ray's random ids in forks.

Invariant: two forks of a process that calls `draw` before each make no id alike. Forks inherit where the random numbers
stand, so without it they would begin with the same ids, and Ray ends a process over an object that is not its own.
"""

from __future__ import annotations

import threading

from ray import ObjectRef


def draw() -> None:
    """Go on in this thread's random numbers, and in those with which a new thread begins."""
    for _ in range(1000):  # more than a worker makes in its main thread
        ObjectRef.from_random()
    others = [threading.Thread(target=ObjectRef.from_random) for _ in range(8)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
