"""The protocol of an engine: what a policy replica asks of whatever samples its tokens.

Invariant: an engine knows nothing of pausing, retries or updates in flight. The replica orders its calls.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rollout_service.config.sampling import Sampling
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.policy.replicas import Occupancy
from rollout_service.policy.weight_history import Names
from rollout_service.policy.weights import Rendezvous, WeightSource


class Engine(Protocol):
    """Samples turns. One per replica; its calls run concurrently on the replica's event loop, which it never blocks.

    The replica calls `stage` and `load` for one update at a time. It lets no turn run during `load` unless the engine
    is frozen.
    """

    version: int
    """Version of the weights that sample now."""

    connects: bool
    """Whether `join` connects its processes to the other ranks, see `process_group.connect`."""

    async def generate(self, input_ids: npt.NDArray[np.int32], sampling: Sampling, info: TurnInfo) -> Generation:
        """Sample one turn; see `rollout_service.policy.base.Policy`. Cancelling it aborts the request.

        Returns:
            A whole turn, or the tokens sampled before an `interrupt`, possibly none, with finish reason `abort`.

        Raises:
            RequestError: the engine cannot do this; nothing was sampled.
            Exception: this turn failed. The turns that run beside it go on, unless the replica ends.
        """
        ...

    def interrupt(self) -> None:
        """Stop the running turns: each `generate` soon returns the tokens that it has."""
        ...

    def check_freeze(self) -> None:
        """Raise `WeightError` if `freeze` cannot be used: it would leave tokens whose weights nobody could name."""
        ...

    async def freeze(self) -> None:
        """Sample no further token until `thaw`. Running turns keep their state. Raises as `check_freeze` does."""
        ...

    async def thaw(self) -> None:
        """Continue after `freeze`."""
        ...

    def check(self, source: WeightSource) -> Names:
        """Check that these weights belong to this model. Changes nothing; may block for a moment.

        Returns:
            Names of the parameters that they contain; None if they contain all of the model's.

        Raises:
            WeightError: they belong to another model; names the first tensor that differs.
        """
        ...

    async def stage(self, source: WeightSource) -> Any:
        """Bring new weights to memory of this replica, as far as that can be done while turns run. Changes nothing.

        Returns:
            What `load` takes. It holds the memory.

        Raises:
            WeightError: they belong to another model.
            Exception: they did not come.
        """
        ...

    async def load(self, staged: Any, version: int, *, keep_cache: bool) -> None:
        """Load weights that were staged, and sample with them from now on.

        Args:
            staged: what `stage` returned.
            keep_cache: keep the prefix cache although the old weights filled it; otherwise empty it.

        Raises:
            WeightError: the weights could not be loaded; the old ones are still whole.
            Exception: any other failure. The weights may be partly loaded, so the replica must be replaced.
        """
        ...

    async def join(self, rendezvous: Rendezvous, rank: int) -> None:
        """Join a process group for weight updates, and connect to its ranks. This engine's first process is `rank`.

        Raises:
            WeightError: the group could not be formed.
        """
        ...

    async def leave(self, group: str) -> None:
        """Leave the process group of that name, also if `stage` was cancelled while it waited there."""
        ...

    def occupancy(self) -> Occupancy | None:
        """How full the engine is now, without waiting for it; None: it has no cache and no queue, or has not said."""
        ...

    def check_health(self) -> None:
        """Raise if the engine cannot sample any more and the replica must be replaced."""
        ...

    def close(self) -> None:
        """Stop the engine's processes and free its devices."""
        ...
