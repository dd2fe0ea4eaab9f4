"""WeightGroup: the trainer's end of a process group that carries weights to the replicas.

Invariant: the trainer is rank 0 and only sends; the replicas receive the same tensors in the same order, for they are
told names, dtypes and shapes before the first is sent.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from typing import Any, Literal, Self

from rollout_service.policy import process_group
from rollout_service.policy.weights import Rendezvous

_POLL_SECONDS = 0.5


class WeightGroup:
    """Made by `RolloutClient.weight_group`; give it to `update_weights`."""

    def __init__(self, rendezvous: Rendezvous, group: Any, coordinator: Any) -> None:
        self.name = rendezvous.name
        self._backend = rendezvous.backend
        self._group = group
        self._coordinator = coordinator

    @classmethod
    def meet(cls, address: str, backend: Literal["nccl", "gloo"], world_size: int, coordinator: Any) -> Self:
        """Meet the replicas at this machine's `address`; blocks until all are there.

        Raises:
            WeightError: the replicas could not join.
        """
        import ray

        from deploy.service import call

        rendezvous = Rendezvous(f"weights-{uuid.uuid4().hex[:8]}", address, _free_port(), backend, world_size)
        answer = coordinator.join_group.remote(rendezvous)
        own: Future[Any] = Future()
        threading.Thread(target=lambda: _settle(own, process_group.join, rendezvous, 0), daemon=True).start()
        try:
            while not own.done():
                wait([own], _POLL_SECONDS)
                if ray.wait([answer], timeout=0)[0]:
                    call(answer)  # a replica that cannot join says so; this end would wait for it until its timeout
            group = own.result()
            call(answer)
        except BaseException:
            coordinator.leave_group.remote(rendezvous.name)
            raise
        return cls(rendezvous, group, coordinator)

    def send(self, tensors: Iterable[Any]) -> None:
        """Send each tensor to every replica."""
        import torch

        device = torch.device("cuda", torch.cuda.current_device()) if self._backend == "nccl" else torch.device("cpu")
        for tensor in tensors:
            process_group.broadcast(self._group, torch.as_tensor(tensor).detach().to(device).contiguous())

    def close(self) -> None:
        """Leave the group, here and in the replicas."""
        from deploy.service import call

        with contextlib.suppress(Exception):
            call(self._coordinator.leave_group.remote(self.name))
        process_group.leave(self._group)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _settle(future: Future[Any], action: Callable[..., Any], *arguments: Any) -> None:
    """Do it, in a thread of no executor: those are waited for when the process ends."""
    try:
        future.set_result(action(*arguments))
    except BaseException as error:
        future.set_exception(error)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
