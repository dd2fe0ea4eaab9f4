"""Process groups for weight updates: the trainer is rank 0, the replicas' processes are the others.

Invariant: a group stands beside whatever groups its process has and touches none of them. It is in none of torch's
registries, so one process may be several ranks. On the wire it is what SGLang makes when it is told to join one.
Torch is imported when a group is made.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rollout_service.errors import WeightError, first_line
from rollout_service.policy.weights import Rendezvous

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def join(rendezvous: Rendezvous, rank: int) -> ProcessGroup:
    """Join the group as that rank. Blocks until all have, at most `rendezvous.timeout_seconds`.

    Raises:
        WeightError: it did not come about.
    """
    from torch import distributed

    timeout = timedelta(seconds=rendezvous.timeout_seconds)
    try:
        store = distributed.TCPStore(
            rendezvous.address, rendezvous.port, rendezvous.world_size, is_master=rank == 0, timeout=timeout
        )
        # What torch puts before the keys of a group that is set up by the name of its own, and of a device's backend
        # in it. Ranks that do it otherwise would wait for each other.
        store = distributed.PrefixStore(f"{rendezvous.name}/", distributed.PrefixStore(rendezvous.name, store))
        group = distributed.ProcessGroup(store, rank, rendezvous.world_size)
        _add_backend(group, rendezvous.backend, store, timeout)
    except (RuntimeError, ValueError, AttributeError) as error:  # the last: a torch without that backend
        raise WeightError(
            f"The process group {rendezvous.name} did not come about at {rendezvous.address}:{rendezvous.port} as rank "
            f"{rank} of {rendezvous.world_size}: {first_line(error)}",
            "See that the address can be reached from every node, and that all ranks join at the same time.",
        ) from error
    return group


def broadcast(group: ProcessGroup, tensor: Any) -> None:
    """Send the tensor, if this is rank 0; else receive it in place. Returns when that is done on the tensor's device.

    Args:
        tensor: contiguous; on a CUDA device for nccl, on the CPU for gloo.
    """
    from torch import distributed

    distributed.broadcast(tensor, group=group, group_src=0)
    if tensor.is_cuda:
        import torch

        torch.cuda.current_stream(tensor.device).synchronize()


def leave(group: ProcessGroup) -> None:
    """Leave the group; nothing may be under way in it."""
    group.shutdown()


def _add_backend(group: ProcessGroup, backend: str, store: Any, timeout: timedelta) -> None:
    import torch
    from torch import distributed

    kinds = distributed.ProcessGroup.BackendType
    if backend == "nccl":
        options = distributed.ProcessGroupNCCL.Options()
        options._timeout = timeout
        device, kind = "cuda", kinds.NCCL
        made: Any = distributed.ProcessGroupNCCL(
            distributed.PrefixStore("cuda/", store), group.rank(), group.size(), options
        )
    else:
        device, kind = "cpu", kinds.GLOO
        made = distributed.ProcessGroupGloo(distributed.PrefixStore("cpu/", store), group.rank(), group.size(), timeout)
    made._set_sequence_number_for_group()
    group._set_default_backend(kind)
    group._register_backend(torch.device(device), kind, made)
