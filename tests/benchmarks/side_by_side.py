"""Services that are compared: each on a GPU of its own at the same time, or one after the other."""

from __future__ import annotations

import concurrent.futures
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import ray
import torch

from rollout_service import RolloutClient, RolloutConfig

_ELSE = 2
"""CPUs, in Ray's books, that a service is left beside those of its environment actors."""

K = TypeVar("K")
T = TypeVar("T")


def together(services: int) -> int:
    """How many of the services run at the same time."""
    return services if torch.cuda.device_count() >= services else 1


def actors(services: int, most: int) -> int:
    """Environment actors that each of the services may have of Ray's CPUs, a power of two up to `most`: so they divide
    the slots evenly."""
    room = int(ray.cluster_resources()["CPU"]) // together(services) - _ELSE
    return max(number for number in (1, 2, 4, 8, 16) if number <= max(1, min(room, most)))


def measured(configs: Mapping[K, RolloutConfig], measure: Callable[[K, RolloutClient], T]) -> dict[K, T]:
    """Start a service for each configuration and measure it.

    With a GPU for each of them all start at the same time, and then all are measured at the same time: that takes one
    start's time, and GPUs of one kind and enough CPUs make it fair. With fewer, each has its turn alone.
    """
    found: dict[K, T] = {}
    names, at_once = list(configs), together(len(configs))
    with concurrent.futures.ThreadPoolExecutor(at_once) as threads:
        for first in range(0, len(names), at_once):
            some = names[first : first + at_once]
            with contextlib.ExitStack() as stack:
                begun = time.monotonic()
                starts = [threads.submit(RolloutClient, config=configs[name]) for name in some]
                clients = [stack.enter_context(start.result()) for start in starts]
                print(f"{', '.join(map(str, some))}: started in {time.monotonic() - begun:.0f} s", flush=True)
                found |= dict(zip(some, threads.map(measure, some, clients), strict=True))
    return found
