"""NcclSettings: what the ranks of an NCCL group must share, and whether two processes share it.

Invariant: comparing is pure. Ranks whose settings differ choose different ways to reach each other, and NCCL does not
notice: one rank dies or waits forever. So every difference is found before anything is sent, by the variable's name.

`NCCL_SOCKET_IFNAME` is not compared. It names an interface of one host, and each rank tells the others its address.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from rollout_service.errors import WeightError

_CUMEM, _NVLS = "NCCL_CUMEM_ENABLE", "NCCL_NVLS_ENABLE"

_UNSET = {_CUMEM: True, _NVLS: True, "NCCL_P2P_DISABLE": False, "NCCL_SHM_DISABLE": False, "NCCL_IB_DISABLE": False}
"""The variables that ranks must agree on, and what each means where it is not set. Memory that one rank allocated in
one way (`NCCL_CUMEM_ENABLE`) cannot be opened by a rank that uses the other. The rest choose how ranks connect."""

_BETWEEN_HOSTS = {"NCCL_IB_DISABLE"}
"""Those that have no effect between two processes of one host."""


@dataclass(frozen=True, slots=True)
class NcclSettings:
    """How NCCL is set up in one process."""

    host: str
    variables: Mapping[str, str]
    """Those of the variables above that are set."""
    version: str | None = None
    """Version of torch's NCCL; None: torch is not imported there, or has none."""
    connects: bool = True
    """Whether the rank connects when it joins a group, see `process_group.connect`. Otherwise its first collective
    does."""

    @classmethod
    def here(cls) -> Self:
        """Those of this process. Imports nothing."""
        variables = {name: os.environ[name] for name in _UNSET if name in os.environ}
        return cls(socket.gethostname(), variables, _version())


def missing(ours: NcclSettings, theirs: Sequence[NcclSettings], *, is_up: bool) -> dict[str, str]:
    """The variables that this process must set, to be set up as the others are.

    Args:
        theirs: of all replicas.
        is_up: NCCL runs in this process already, so that setting a variable has no effect any more.

    Raises:
        WeightError: a variable differs that can no longer be set, or that the user has set; or the versions differ.
    """
    found: dict[str, str] = {}
    for other in theirs:
        _check_version(ours, other)
        for name in _differences(ours, other):
            own, value = ours.variables.get(name), other.variables.get(name)
            if own is not None or value is None or is_up:
                raise _refused(name, own, value, is_up)
            found[name] = value
    return found


def check_alike(replicas: Sequence[NcclSettings]) -> None:
    """Check that NCCL is set up alike in all replicas.

    Raises:
        WeightError: it is not; names the variable and all its values.
    """
    for other in replicas[1:]:
        _check_version(replicas[0], other)
        for name in _differences(replicas[0], other):
            values = sorted({_shown(each.variables.get(name)) for each in replicas})
            raise WeightError(
                f"{name} differs between the replicas: {', '.join(values)}.", "Set it for all, in policy.env_vars."
            )


def connect_alike(replicas: Sequence[NcclSettings]) -> bool:
    """Whether the replicas connect when they join a group.

    Raises:
        WeightError: only some do, which would wait for the others.
    """
    connecting = {each.host for each in replicas if each.connects}
    others = {each.host for each in replicas if not each.connects}
    if connecting and others:
        raise WeightError(
            f"Replicas connect when they join on {_listed(connecting)}, and in their first update on "
            f"{_listed(others)}: they would wait for each other.",
            "Install the same engine on all nodes.",
        )
    return not others


def _listed(hosts: Iterable[str]) -> str:
    return ", ".join(sorted(hosts))


def _differences(one: NcclSettings, other: NcclSettings) -> Iterable[str]:
    for name in _UNSET:
        matters = one.host != other.host or name not in _BETWEEN_HOSTS
        if matters and _is_on(one.variables, name) != _is_on(other.variables, name):
            yield name


def _is_on(variables: Mapping[str, str], name: str) -> bool:
    value = variables.get(name)
    on = _UNSET[name] if value is None else value.strip() != "0"
    # NVLS allocates as NCCL_CUMEM_ENABLE says, so without that it is off whatever it says itself
    return on and (name != _NVLS or _is_on(variables, _CUMEM))


def _refused(name: str, own: str | None, value: str | None, is_up: bool) -> WeightError:
    here = f"{_shown(own)}, and NCCL is up already," if own is None and is_up else _shown(own)
    return WeightError(
        f"{name} is {here} in this process and {_shown(value)} in the replicas: NCCL cannot connect them.",
        f"Start the trainer with {name}={value}."
        if value is not None
        else f"Start the trainer without it, or the replicas with policy.env_vars: {{{name}: '{own}'}}.",
    )


def _check_version(ours: NcclSettings, theirs: NcclSettings) -> None:
    if None not in (ours.version, theirs.version) and ours.version != theirs.version:
        raise WeightError(
            f"torch's NCCL has version {ours.version} on {ours.host} and {theirs.version} on {theirs.host}: ranks of "
            "different versions refuse each other.",
            "Install the same torch where the trainer and the replicas run.",
        )


def _shown(value: str | None) -> str:
    return "not set" if value is None else repr(value)


def _version() -> str | None:
    torch = sys.modules.get("torch")
    try:
        return None if torch is None else ".".join(map(str, torch.cuda.nccl.version()))
    except (AttributeError, RuntimeError):  # a torch without NCCL
        return None
