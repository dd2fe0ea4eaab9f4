"""Policies: tokens in, tokens out. `base` is the contract; each other module is one way to reach an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollout_service.policy.base import Policy

if TYPE_CHECKING:  # the configuration itself needs `base`
    from rollout_service.config import PolicyConfig


def make(settings: PolicyConfig, application: str | None) -> Policy:
    """The policy that the settings name; `application` is the Serve application that fronts the replicas, if any."""
    if application is None:
        from rollout_service.policy.sglang_http import SglangHttpPolicy

        return SglangHttpPolicy(str(settings.url), settings.retry_seconds)
    from rollout_service.policy.serve import ServePolicy

    return ServePolicy(application, retry_seconds=settings.retry_seconds)
