"""How the processes of a service reach each other: typed handles of remote actors.

Invariant: whoever holds a handle needs nothing of the actor's own module.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class Reference(Protocol[R_co]):
    """What Ray calls an object reference: a value that may not exist yet, somewhere in the cluster."""

    def __await__(self) -> Generator[Any, Any, R_co]:
        """The value."""
        ...


class RemoteMethod(Protocol[P, R_co]):
    """A method of a remote actor."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Reference[R_co]:
        """Call it; returns at once."""
        ...
