"""The Ray Serve application that fronts the policy replicas: tokens in, tokens out.

Invariant: a replica returns exactly what its engine sampled. It adds nothing to a request and takes nothing away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from ray import serve

from deploy import engines
from rollout_service.config import RolloutConfig
from rollout_service.policy.base import Generation, Sampling
from rollout_service.policy.serve import SERVE_ENVIRONMENT

_MAX_ONGOING_REQUESTS = 1024
"""Per replica. An episode waits for its turn inside the engine, which batches, not in front of it."""


class PolicyReplica:
    """One replica: an engine, and the methods that handles call."""

    def __init__(self, config: RolloutConfig) -> None:
        self._engine = engines.make(config)

    async def generate(
        self, input_ids: npt.NDArray[np.int32], sampling: Sampling, metadata: dict[str, Any]
    ) -> Generation:
        """Sample one turn, see `deploy.engines.Engine`."""
        return await self._engine.generate(input_ids, sampling, metadata)


def app(config: RolloutConfig) -> serve.Application:
    """The Serve application of this configuration."""
    deployment = serve.deployment(
        name="policy",
        num_replicas=config.policy.replicas,
        max_ongoing_requests=_MAX_ONGOING_REQUESTS,
        ray_actor_options={"num_cpus": 0, "runtime_env": {"env_vars": SERVE_ENVIRONMENT}},
        max_constructor_retry_count=3,
        logging_config={"log_level": "WARNING", "enable_access_log": False},  # a line per turn would be megabytes
    )(PolicyReplica)
    return deployment.bind(config)
