"""Which settings shape a trajectory, and which only say where and how fast it is made.

Invariant: two collections whose shaping settings are equal differ only in their tasks, seeds and weights.
"""

from __future__ import annotations

from typing import Any

from rollout_service.config.root import RolloutConfig, field_names

_SHAPING = ("tasks.", "agent", "policy.", "user.", "evaluation.", "limits.")

PLACE_AND_PACE = (
    "policy.url",
    "policy.timeout_seconds",
    "policy.retry_seconds",
    "policy.env_vars",
    "policy.env_vars_from",
    "policy.replicas",
    "policy.autoscaling",
    "policy.gpus_per_replica",
    "policy.cpus_per_replica",
    "policy.max_ongoing_requests",
    "policy.start_seconds",
    "policy.weight_version",
    "policy.application",
    "policy.http_",
    "policy.script.latency.",
    "user.base_url",
    "user.api_key_var",
    "user.timeout_seconds",
    "user.retries",
    "user.max_retry_wait_seconds",
    "user.max_concurrency",
    "user.review.base_url",
    "user.review.api_key_var",
    "user.script.latency.",
    "evaluation.judge.base_url",
    "evaluation.judge.api_key_var",
    "evaluation.judge.max_concurrency",
)
"""Beginnings of the names of settings in those sections that shape nothing."""

UNKNOWN_UNTIL_STARTED = ("policy.context_length", "policy.date")
"""Settings that are filled in at a start where they are null."""


def shaping(config: RolloutConfig) -> dict[str, Any]:
    """The settings that shape a trajectory, `tasks` among them, as JSON values by dotted name."""
    tree = config.model_dump(mode="json")
    found = {}
    for dotted in field_names():
        if dotted.startswith(_SHAPING) and not dotted.startswith(PLACE_AND_PACE):
            value: Any = tree
            for part in dotted.split("."):
                value = value[part]
            found[dotted] = value
    return found
