"""WeightGroup: the trainer's end of a process group that carries weights to the replicas.

Invariant: the trainer is rank 0 and only sends. The replicas receive the same tensors in the same order, because they
are told names, dtypes and shapes before the first tensor is sent. No wait is endless: a replica that dies or never
joins is an error here in time, and then both the trainer and the replicas leave the group.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, Literal, Self

from rollout_service.cluster import Reference, call
from rollout_service.errors import RolloutError, ServiceError, WeightError, first_line
from rollout_service.policy import nccl, process_group
from rollout_service.policy.fleet import FleetHandle
from rollout_service.policy.replicas import UpdateReport
from rollout_service.policy.weights import GroupTerms, Rendezvous, WeightUpdate

_POLL_SECONDS = 0.5
"""Seconds between two checks of the replicas during a long wait."""

_NOTICE_SECONDS = 5.0
"""Seconds that the cluster has to notice that a replica died, after the connection to it broke."""

_LEAVE_SECONDS = 20.0
"""Seconds that the replicas have to leave a broken group. Those that cannot leave it end themselves."""

_AHEAD = 2
"""Tensors that are prepared while an earlier one is being sent."""


class WeightGroup:
    """A process group for weights. `RolloutClient.weight_group` makes it; pass it to `update_weights`."""

    def __init__(self, rendezvous: Rendezvous, group: Any, fleet: FleetHandle) -> None:
        self.name = rendezvous.name
        self._rendezvous = rendezvous
        self._group: Any = group
        """None after this process left it."""
        self._fleet = fleet

    @classmethod
    def meet(
        cls,
        address: str,
        backend: Literal["nccl", "gloo"],
        terms: GroupTerms,
        fleet: FleetHandle,
        timeout_seconds: float,
    ) -> Self:
        """Form the group with the replicas at this machine's `address`. Blocks until all joined, at most
        `timeout_seconds`.

        Raises:
            WeightError: the replicas could not join, or not in the same way, or NCCL could not work with them.
        """
        connects = nccl.connect_alike(terms.nccl)
        if backend == "nccl":
            process_group.match_nccl(terms.nccl)
        name = f"weights-{uuid.uuid4().hex[:8]}"
        listening = process_group.listen()
        port = listening.getsockname()[1]
        rendezvous = Rendezvous(name, address, port, backend, terms.world_size, timeout_seconds)
        try:
            answer = fleet.join_group.remote(rendezvous)
            watch = _Watch(rendezvous, fleet, answer)
        except BaseException:
            listening.close()
            raise
        group = None
        try:
            group = watch.until(_in_thread(process_group.join, rendezvous, 0, listening))
            if connects:
                watch.until(_in_thread(process_group.connect, group, _device(backend)))
            watch.answered()
        except BaseException:
            fleet.leave_group.remote(name)
            if group is not None:
                _in_thread(process_group.abort, group)
                group = None  # the traceback would keep it, and ranks that connect wait for as long as it is there
            raise
        return cls(rendezvous, group, fleet)

    def update(self, tensors: Iterable[Any], update: WeightUpdate) -> UpdateReport:
        """Have the replicas load the tensors that `update` describes, sending each to all of them.

        Raises:
            WeightError: a replica died or does not answer. The group is closed then.
            RolloutError: an error of the replicas.
        """
        self.check_open()
        answer = self._fleet.update_weights.remote(update)
        watch = _Watch(self._rendezvous, self._fleet, answer)
        try:
            for sent in self._sent(tensors):
                watch.until(sent)
            report: UpdateReport = watch.answered()
        except BaseException:
            self._abandon(answer)
            raise
        return report

    def check_open(self) -> None:
        """Raise `WeightError` if the group was closed or is broken."""
        if self._group is None:
            raise WeightError(f"The process group {self.name} is closed.", "Make another: client.weight_group().")

    def _sent(self, tensors: Iterable[Any]) -> Iterator[Future[None]]:
        """One future for each tensor, done when it was sent. Another thread sends, because a wait inside NCCL cannot be
        interrupted. This thread makes the tensors: it has the trainer's CUDA streams and collectives."""
        queue: SimpleQueue[tuple[Future[None], Any] | None] = SimpleQueue()
        threading.Thread(target=_send, args=(self._group, queue), daemon=True).start()
        under_way: deque[Future[None]] = deque()
        try:
            for tensor in tensors:
                sent: Future[None] = Future()
                queue.put((sent, self._ready(tensor)))
                under_way.append(sent)
                if len(under_way) > _AHEAD:
                    yield under_way.popleft()
            yield from under_way
        finally:
            queue.put(None)

    def _ready(self, tensor: Any) -> Any:
        """The tensor on the device that it is sent from, with its values computed."""
        import torch

        device = _device(self._rendezvous.backend)
        ready = torch.as_tensor(tensor).detach().to(device).contiguous()
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the sending thread uses another stream
        return ready

    def _abandon(self, answer: Reference[UpdateReport]) -> None:
        """Leave a broken group, in which replicas may still wait. Returns when they have stopped waiting."""
        import ray

        group, self._group = self._group, None
        leaving = self._fleet.leave_group.remote(self.name)
        wait([_in_thread(process_group.abort, group)], _POLL_SECONDS)
        with contextlib.suppress(Exception):
            ray.wait([leaving, answer], num_returns=2, timeout=_LEAVE_SECONDS)

    def close(self) -> None:
        """Leave the group, here and in the replicas. Closing it again does nothing."""
        import ray

        group, self._group = self._group, None
        if group is None:
            return
        with contextlib.suppress(Exception):
            ray.wait([self._fleet.leave_group.remote(self.name)], timeout=_LEAVE_SECONDS)
        wait([_in_thread(process_group.leave, group)], _LEAVE_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Watch:
    """Waits for this side's work in a group, and checks meanwhile that the replicas can still do theirs."""

    def __init__(self, rendezvous: Rendezvous, fleet: FleetHandle, answer: Reference[Any]) -> None:
        """
        Args:
            answer: reference of the fleet's answer for the replicas' side.
        """
        self._rendezvous = rendezvous
        self._fleet = fleet
        self._answer = answer
        self._asked: Reference[list[str]] | None = None
        """Reference of the fleet's answer to which replicas have left the group, and why."""

    def until(self, own: Future[Any]) -> Any:
        """The future's result.

        Raises:
            WeightError: a replica is gone, or the timeout has passed.
            RolloutError: an error of the replicas.
        """
        deadline = time.monotonic() + self._rendezvous.timeout_seconds
        while not wait([own], _POLL_SECONDS).done:
            self._check_not_ended()
            self._check_all_there()
            if time.monotonic() > deadline:
                raise self._late()
        try:
            return own.result()
        except WeightError:
            raise
        except Exception as error:
            self._blame_the_dead()
            raise self._broken(first_line(error)) from error

    def answered(self) -> Any:
        """The fleet's answer for the replicas' side, after this side's work is done.

        Raises:
            WeightError: the timeout has passed.
            RolloutError: an error of the replicas.
        """
        import ray

        if not ray.wait([self._answer], timeout=self._rendezvous.timeout_seconds)[0]:
            raise self._late()
        try:
            return call(self._answer, "fleet")
        except ServiceError:
            self._blame_the_dead()
            raise

    def _check_not_ended(self) -> None:
        """Raise the replicas' error if they ended already: this side would wait for them in vain."""
        import ray

        if ray.wait([self._answer], timeout=0)[0]:
            self.answered()

    def _blame_the_dead(self) -> None:
        """After a failure, raise `WeightError` if it is a replica's, which the cluster may notice a little later."""
        noticed = time.monotonic() + _NOTICE_SECONDS
        while time.monotonic() < noticed:
            self._check_all_there()
            time.sleep(_POLL_SECONDS)

    def _check_all_there(self) -> None:
        import ray

        if self._asked is None:
            self._asked = self._fleet.absent.remote(self._rendezvous.name)
        if not ray.wait([self._asked], timeout=0)[0]:
            return
        asked, self._asked = self._asked, None
        gone = call(asked, "fleet")
        if gone:
            raise self._broken("; ".join(gone))

    def _late(self) -> RolloutError:
        seconds = self._rendezvous.timeout_seconds
        return self._broken(
            f"one of its {self._rendezvous.world_size - 1} ranks in the replicas did not join in within {seconds:g} s"
        )

    def _broken(self, why: str) -> RolloutError:
        return WeightError(
            f"The process group {self._rendezvous.name} is closed: {why}.",
            "Make another with client.weight_group() when the replicas are back; client.replicas() shows them.",
        )


def _device(backend: str) -> Any:
    """The torch device that this thread's tensors are sent from."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")


def _send(group: Any, queue: SimpleQueue[tuple[Future[None], Any] | None]) -> None:
    """Broadcast the queued tensors in order, until None comes or one fails."""
    for sent, tensor in iter(queue.get, None):
        try:
            with process_group.beside(tensor):
                process_group.broadcast(group, tensor)
        except BaseException as error:
            # its traceback would keep the group, and the other ranks wait for as long as this process has that
            sent.set_exception(error.with_traceback(None))
            return
        sent.set_result(None)


def _in_thread(action: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Run the action in a daemon thread. An executor's threads would be joined when the process ends."""
    future: Future[Any] = Future()

    def settle() -> None:
        try:
            future.set_result(action(*arguments))
        except BaseException as error:
            future.set_exception(error.with_traceback(None))  # as in `_send`

    threading.Thread(target=settle, daemon=True).start()
    return future
