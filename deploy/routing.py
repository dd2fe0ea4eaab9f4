"""SessionRouter: keeps an episode's turns on one replica, where its prefix is cached, and replicas evenly loaded.

Invariant: a request with a session id goes to the replica of its session while that lives, and to another one when it
does not. Ray's own ConsistentHashRouter does as much, but it spreads sessions by hash alone: of 64 sessions over two
replicas, 38 on one are common, and the fuller replica sets the pace. This one counts.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from deploy.sessions import SessionTable


class SessionRouter(ConsistentHashRouter):  # type: ignore[misc]  # Ray's classes have no types
    """Routes by session. Each process that calls the deployment has one; requests without a session go by hash."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Serve's own arguments."""
        super().__init__(*args, **kwargs)
        self._sessions = SessionTable()

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any | None = None
    ) -> list[list[Any]]:
        """The replica of the request's session, alone."""
        if pending_request is None or not pending_request.metadata.session_id or not candidate_replicas:
            return await super().choose_replicas(candidate_replicas, pending_request)
        pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_name[self._sessions.replica_of(pending_request.metadata.session_id, by_name, time.monotonic())]]]
