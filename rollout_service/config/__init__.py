"""Every setting of the service, and how values that a caller gives are read and checked.

Only `rollout_service.errors` and `rollout_service.redaction` lie below this room, so every other room may use it.
"""

from rollout_service.config.tree import (
    Autoscaling,
    Evaluation,
    Judge,
    Latency,
    Limits,
    PolicyConfig,
    RolloutConfig,
    Script,
    Service,
    Tasks,
    User,
    field_names,
    parse_value,
)

__all__ = [
    "Autoscaling",
    "Evaluation",
    "Judge",
    "Latency",
    "Limits",
    "PolicyConfig",
    "RolloutConfig",
    "Script",
    "Service",
    "Tasks",
    "User",
    "field_names",
    "parse_value",
]
