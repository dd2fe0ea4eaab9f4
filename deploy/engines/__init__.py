"""Engines: what samples tokens inside a policy replica. One protocol, `Engine`; each other module is one engine."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from rollout_service.config import RolloutConfig
from rollout_service.policy.base import Generation, Sampling


class Engine(Protocol):
    """Samples turns. One per replica; its calls run concurrently on the replica's event loop."""

    async def generate(
        self, input_ids: npt.NDArray[np.int32], sampling: Sampling, metadata: dict[str, Any]
    ) -> Generation:
        """Sample one turn; see `rollout_service.policy.base.Policy`. Cancelling it aborts the request."""
        ...


def make(config: RolloutConfig) -> Engine:
    """The engine that `policy.engine` names."""
    from deploy.engines.scripted import ScriptedEngine
    from rollout_service.chat import ChatCodec
    from rollout_service.tau2 import tasks

    policy = config.policy
    for domain in config.tasks.domains:
        tasks.references(domain, config.tasks.split)  # parsed now, not in the first turn
    return ScriptedEngine(policy.script, ChatCodec.load(policy.tokenizer, tool_parser=policy.tool_parser))
