"""Process groups for weight updates: the trainer is rank 0, the replicas' processes are the other ranks.

Invariant: a group is independent of all other groups of its process. It is in none of torch's registries, so one
process may be several ranks. Its protocol is the one of the groups that SGLang joins. Torch is imported only when a
group is made.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rollout_service.errors import WeightError, first_line
from rollout_service.policy import nccl
from rollout_service.policy.nccl import NcclSettings
from rollout_service.policy.weights import Rendezvous

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def match_nccl(replicas: Sequence[NcclSettings]) -> None:
    """Check that NCCL is set up here as in the replicas, before it connects to them. Sets the variables that differ, as
    far as that still has an effect.

    Raises:
        WeightError: a variable here differs, and was set by the user or can no longer be changed; or it differs between
            the replicas; or the versions differ.
    """
    import torch  # noqa: F401  # so that the version is known

    nccl.check_alike(replicas)
    os.environ |= nccl.missing(NcclSettings.here(), replicas, is_up=_nccl_is_up())


def _nccl_is_up() -> bool:
    """Whether this process already has an NCCL process group. NCCL reads its variables only once."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return False
    groups = distributed.distributed_c10d._world.pg_map
    return any("nccl" in distributed.get_backend_config(group) for group in groups)


def listen() -> socket.socket:
    """A socket for rank 0, at a port of all this machine's addresses, which nobody else can take from now on."""
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return socket.create_server(("", 0), family=family, dualstack_ipv6=both)


def join(rendezvous: Rendezvous, rank: int, listening: socket.socket | None = None) -> ProcessGroup:
    """Join the group as `rank`. Blocks until all ranks have joined, at most `rendezvous.timeout_seconds`.

    Args:
        listening: the socket from `listen`. Rank 0 must pass it, and no other rank may. The group closes it.

    Raises:
        ValueError: rank 0 without a socket, or another rank with one.
        WeightError: a rank did not join in time, or the backend is missing.
    """
    from torch import distributed

    if (rank == 0) != (listening is not None):
        raise ValueError(f"Rank 0 listens, and only rank 0. This is rank {rank}, and listening is {listening}.")
    timeout = timedelta(seconds=rendezvous.timeout_seconds)
    try:
        store = distributed.TCPStore(
            rendezvous.address,
            rendezvous.port,
            rendezvous.world_size,
            is_master=listening is not None,
            timeout=timeout,
            master_listen_fd=None if listening is None else listening.detach(),
        )
        # torch prefixes the keys of a named group, and of a device's backend in it, like this. Ranks with other
        # prefixes would wait for each other.
        store = distributed.PrefixStore(f"{rendezvous.name}/", distributed.PrefixStore(rendezvous.name, store))
        group = distributed.ProcessGroup(store, rank, rendezvous.world_size)
        _add_backend(group, rendezvous.backend, store, timeout)
    except (RuntimeError, ValueError, AttributeError) as error:  # AttributeError: torch lacks that backend
        raise WeightError(
            f"The process group {rendezvous.name} could not be joined at {rendezvous.address}:{rendezvous.port} as "
            f"rank {rank} of {rendezvous.world_size}: {first_line(error)}",
            "Check that every node can reach the address, and that all ranks join at the same time.",
        ) from error
    return group


def connect(group: ProcessGroup, device: Any) -> None:
    """Connect the ranks of a group that all have joined. Each of them calls this once. Ranks of NCCL connect in their
    first collective, which takes a second; in a weight update, turns would stand still for it.

    Args:
        device: torch device that this rank's tensors will be on.

    Raises:
        RuntimeError: a rank is gone, or the timeout has passed.
    """
    import torch

    first = torch.zeros(1, device=device)
    with beside(first):
        broadcast(group, first)


def broadcast(group: ProcessGroup, tensor: Any) -> None:
    """Rank 0 sends the tensor, the others receive it in place. Returns when the tensor's device is done.

    Args:
        tensor: contiguous; on a CUDA device for nccl, on the CPU for gloo.
    """
    from torch import distributed

    distributed.broadcast(tensor, group=group, group_src=0)
    if tensor.is_cuda:
        import torch

        torch.cuda.current_stream(tensor.device).synchronize()


def beside(tensor: Any) -> AbstractContextManager[Any]:
    """Run this thread's work with the tensor on a CUDA stream of its own. All threads share a device's default stream,
    so a broadcast that never ends there would block every other thread that waits for the device. It begins after what
    that stream has now, which may still use the memory that the tensor was given."""
    if not tensor.is_cuda:
        return nullcontext()
    import torch

    stream = torch.cuda.Stream(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    return torch.cuda.stream(stream)


def leave(group: ProcessGroup) -> None:
    """Leave the group. Nothing may be running in it."""
    group.shutdown()


def abort(group: ProcessGroup) -> None:
    """Leave the group, whatever is running in it. Waits in NCCL end at once. In gloo this process's waits end at their
    timeout, and those of the other ranks as soon as nothing refers to the group."""
    group.abort()


def _add_backend(group: ProcessGroup, backend: str, store: Any, timeout: timedelta) -> None:
    import torch
    from torch import distributed

    kinds = distributed.ProcessGroup.BackendType
    if backend == "nccl":
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = timeout
        device, kind = "cuda", kinds.NCCL
        with _errors_left_to_us():
            made: Any = distributed.ProcessGroupNCCL(
                distributed.PrefixStore("cuda/", store), group.rank(), group.size(), options
            )
    else:
        device, kind = "cpu", kinds.GLOO
        made = distributed.ProcessGroupGloo(distributed.PrefixStore("cpu/", store), group.rank(), group.size(), timeout)
    made._set_sequence_number_for_group()
    group._set_default_backend(kind)
    group._register_backend(torch.device(device), kind, made)


@contextmanager
def _errors_left_to_us() -> Iterator[None]:
    """Groups made in this context do not end their process when a rank is lost, which is torch's default."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
