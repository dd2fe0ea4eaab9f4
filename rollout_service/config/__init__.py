"""Every setting of the service, a file a section, and how values that a caller gives are read and checked.

Only `rollout_service.errors` and `rollout_service.redaction` lie below this room, so every other room may use it.
"""

from rollout_service.config.evaluation import Evaluation, Judge
from rollout_service.config.gateway import Gateway
from rollout_service.config.limits import Limits
from rollout_service.config.policy import Autoscaling, PolicyConfig
from rollout_service.config.root import RolloutConfig, field_names
from rollout_service.config.script import Latency, Script
from rollout_service.config.service import Service
from rollout_service.config.tape import Tape
from rollout_service.config.tasks import Tasks
from rollout_service.config.user import User
from rollout_service.config.variables import TAU2_VARIABLES
from rollout_service.config.yaml_text import parse_value

__all__ = [
    "TAU2_VARIABLES",
    "Autoscaling",
    "Evaluation",
    "Gateway",
    "Judge",
    "Latency",
    "Limits",
    "PolicyConfig",
    "RolloutConfig",
    "Script",
    "Service",
    "Tape",
    "Tasks",
    "User",
    "field_names",
    "parse_value",
]
