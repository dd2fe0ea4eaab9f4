"""Engines: what samples tokens inside a policy replica. One protocol, `Engine`; each other module is one engine."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rollout_service.config import RolloutConfig
from rollout_service.config.sampling import Sampling
from rollout_service.policy.base import Generation
from rollout_service.policy.weight_history import Names
from rollout_service.policy.weights import Rendezvous, WeightSource


class Engine(Protocol):
    """Samples turns. One per replica; its calls run concurrently on the replica's event loop, which it never blocks.

    The replica sees to it that `load` is called for one update at a time, and that no turn runs meanwhile unless the
    engine is frozen.
    """

    version: int
    """Of the weights that sample now."""

    async def generate(
        self, input_ids: npt.NDArray[np.int32], sampling: Sampling, metadata: dict[str, Any]
    ) -> Generation:
        """Sample one turn; see `rollout_service.policy.base.Policy`. Cancelling it aborts the request.

        Returns:
            A turn, or what an `interrupt` left of one: finish reason `abort`, possibly no token.

        Raises:
            RequestError: the engine cannot do it; refused before the engine was touched.
            Exception: it failed; the turns that run beside it go on, unless the replica ends.
        """
        ...

    def interrupt(self) -> None:
        """Stop the turns that run now: each `generate` returns what it has, soon."""
        ...

    async def freeze(self) -> None:
        """Sample no further token; running turns stay where they are, until `thaw`."""
        ...

    async def thaw(self) -> None:
        """Go on after `freeze`."""
        ...

    def check(self, source: WeightSource) -> Names:
        """See, before anything is touched, that these weights are this model's. May block for a moment.

        Returns:
            The parameters that they are, by the names given; None for all that the model has.

        Raises:
            WeightError: they are not; names the first tensor that differs.
        """
        ...

    async def load(self, source: WeightSource, version: int, *, keep_cache: bool) -> None:
        """Load weights and sample with them from now on.

        Args:
            keep_cache: the prefix cache stays although the old weights filled it; else it is emptied.

        Raises:
            WeightError: the weights could not be loaded; the old ones are still whole.
            Exception: anything else: the weights may be partly loaded, the replica must be replaced.
        """
        ...

    async def join(self, rendezvous: Rendezvous, rank: int) -> None:
        """Join a process group for weight updates, this engine's first process as `rank`.

        Raises:
            WeightError: it did not come about.
        """
        ...

    async def leave(self, group: str) -> None:
        """Leave the process group of that name."""
        ...

    def check_health(self) -> None:
        """Raise when the engine cannot sample any more and the replica must be replaced."""
        ...

    def close(self) -> None:
        """Stop the engine's processes and free its devices."""
        ...


def make(config: RolloutConfig) -> Engine:
    """The engine that `policy.engine` names. Blocks until it can sample.

    Raises:
        ConfigError: settings that the engine does not take.
        Exception: the engine's own, when it cannot start.
    """
    policy = config.policy
    if policy.engine == "sglang":
        from deploy.engines.sglang import SglangEngine

        return SglangEngine(policy)
    if policy.engine == "transformers":
        from deploy.engines.transformers import TransformersEngine

        return TransformersEngine(policy)
    from deploy.engines.scripted import ScriptedEngine
    from rollout_service.chat.codec import ChatCodec
    from rollout_service.tau2 import tasks

    for domain in config.tasks.domains:
        tasks.references(domain, config.tasks.split)  # parsed now, not in the first turn
    codec = ChatCodec.load(policy.tokenizer_name, tool_parser=policy.tool_parser)
    return ScriptedEngine(policy.script, codec, policy.weight_version)
