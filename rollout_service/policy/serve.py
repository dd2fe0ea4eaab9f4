"""The policy behind a Ray Serve handle.

Invariant: one call per turn, never repeated here: a turn that may have been sampled is not sampled again behind the
episode's back. A failed call is the episode's fault `policy`, and the whole episode is tried again.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from rollout_service.policy.base import Generation, Sampling

SERVE_ENVIRONMENT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}
"""For replicas and for the actors that call them: most of what `RAY_SERVE_THROUGHPUT_OPTIMIZED` sets. A hop between
threads and Ray's task machinery fewer on each side: a call takes half of the CPU time. Nothing may block the loops."""


class ServePolicy:
    """Reaches the replicas of a Serve application from inside the cluster."""

    def __init__(self, application: str, deployment: str = "policy") -> None:
        """Names the deployment; it is looked up at the first call, so that it may come up meanwhile."""
        from ray import serve  # here, in one thread: threads that import it at once can find it half made

        self._find = functools.partial(serve.get_deployment_handle, deployment, application)

    @functools.cached_property
    def _handle(self) -> Any:
        return self._find()

    async def generate(
        self, input_ids: npt.NDArray[np.int32], sampling: Sampling, session_id: str, metadata: dict[str, Any]
    ) -> Generation:
        """Sample one turn, see `Policy`. Cancelling it cancels the request in the replica."""
        response = self._handle.options(session_id=session_id).generate.remote(input_ids, sampling, metadata)
        try:
            generation: Generation = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return generation
