"""The policy behind a Ray Serve handle.

Invariant: a turn whose replica is lost is sent to another one with the same tokens, because nothing of it was recorded;
see `patience` for a turn that crashes every replica. A request that an engine refuses is final: neither the turn nor
the episode is tried again. Any other failure is a fault of kind `policy`.
"""

from __future__ import annotations

import asyncio
import functools

import numpy as np
import numpy.typing as npt

from rollout_service.cluster import DEPLOYMENT
from rollout_service.config.sampling import Sampling
from rollout_service.errors import first_line
from rollout_service.policy.base import Generation, RequestError, TurnInfo
from rollout_service.policy.deployment import PendingTurn, PolicyHandle
from rollout_service.policy.overlong import fitted
from rollout_service.policy.patience import DeadEngineError, LostTurnError, Patience


class ServePolicy:
    """Reaches the replicas of a Serve application from inside the cluster. The turns of a session go to one replica."""

    def __init__(self, application: str, deployment: str = DEPLOYMENT, retry_seconds: float = 120.0) -> None:
        """The deployment is looked up at the first call, so it may still be starting now.

        Args:
            retry_seconds: how long one turn is retried while replicas are lost.
        """
        from ray import serve  # imported here in one thread: concurrent imports can see a half-made module

        self._find = functools.partial(serve.get_deployment_handle, deployment, application)
        self._patience = Patience(retry_seconds)

    @functools.cached_property
    def _handle(self) -> PolicyHandle:
        handle: PolicyHandle = self._find()
        return handle

    async def generate(
        self, input_ids: npt.NDArray[np.int32], sampling: Sampling, session_id: str, info: TurnInfo
    ) -> Generation:
        """Sample one turn, see `Policy`. Cancelling it cancels the request in the replica.

        Raises:
            RequestError: the engine refuses it.
            EpisodeFault: one replica after the other died with it.
        """
        handle = self._handle.options(session_id=session_id)

        async def ask(fitting: Sampling) -> Generation:
            return await self._patience.retry_lost_turn(
                lambda: self._ask(handle.generate.remote(input_ids, fitting, info))
            )

        return await fitted(ask, sampling, len(input_ids))

    @staticmethod
    async def _ask(turn: PendingTurn) -> Generation:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        try:
            return await turn
        except asyncio.CancelledError:
            turn.cancel()
            raise
        except RayActorError as error:
            if error.preempted:  # the machine was taken away
                raise LostTurnError from error
            raise DeadEngineError(str(error.actor_id)) from error
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise LostTurnError from error
        except RequestError as error:
            raise RequestError(first_line(getattr(error, "cause", error))) from None  # without the replica's traceback
