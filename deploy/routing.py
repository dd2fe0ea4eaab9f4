"""SessionRouter: keeps an episode's turns on one replica, where its prefix is cached, and replicas evenly loaded.

Invariant: a request with a session id goes to the replica of its session while that replica lives, and then to another.
Ray's own ConsistentHashRouter does this too, but it spreads sessions by hash alone: two replicas often get 38 and 26 of
64 sessions, and the fuller replica sets the pace. This router counts sessions.
"""

from __future__ import annotations

import time
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter

from deploy.sessions import SessionTable


class SessionRouter(ConsistentHashRouter):  # type: ignore[misc]  # Ray's classes have no types
    """Routes by session, one router in each process that calls the deployment. Requests without a session are routed
    by hash."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Takes what Serve passes to a router."""
        super().__init__(*args, **kwargs)
        self._sessions = SessionTable()

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any | None = None
    ) -> list[list[Any]]:
        """The replica of the request's session, as the only candidate."""
        if pending_request is None or not pending_request.metadata.session_id or not candidate_replicas:
            return await super().choose_replicas(candidate_replicas, pending_request)
        pending_request.routing_context.should_backoff = True
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_name[self._sessions.replica_of(pending_request.metadata.session_id, by_name, time.monotonic())]]]
