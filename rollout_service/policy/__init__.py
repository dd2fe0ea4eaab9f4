"""Policies: tokens in, tokens out. `base` defines the contract; the other modules are ways to reach an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollout_service.policy.base import Policy

if TYPE_CHECKING:  # the configuration itself needs `base`
    from rollout_service.config import PolicyConfig


def make(settings: PolicyConfig, application: str | None) -> Policy:
    """The policy of these settings. `application` names the Serve application in front of the replicas; None: an HTTP
    endpoint serves the policy."""
    if application is None:
        from rollout_service.policy.sglang_http import SglangHttpPolicy

        return SglangHttpPolicy(str(settings.url), settings.retry_seconds)
    from rollout_service.policy.serve import ServePolicy

    return ServePolicy(application, retry_seconds=settings.retry_seconds)
