"""rollout_service: τ²-bench episodes at scale, as masked token trajectories for any trainer.

Importing this package is cheap: it needs no Ray cluster, no torch and no network. The client pulls in Ray when it is
first used.
"""

import sys
from typing import TYPE_CHECKING, Any

from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError
from rollout_service.moved import MovedModules
from rollout_service.record.batch import IncompleteCollection, TrajectoryBatch
from rollout_service.record.evaluation import Evaluation, IncompleteEvaluation
from rollout_service.record.trajectory import Outcome, TaskRef, TokenSegment, Trajectory, Turn
from rollout_service.version import __version__

if TYPE_CHECKING:
    from rollout_service.client import RolloutClient

__all__ = [
    "Evaluation",
    "IncompleteCollection",
    "IncompleteEvaluation",
    "Outcome",
    "RolloutClient",
    "RolloutConfig",
    "RolloutError",
    "TaskRef",
    "TokenSegment",
    "Trajectory",
    "TrajectoryBatch",
    "Turn",
    "__version__",
]


if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.append(MovedModules())


def __getattr__(name: str) -> Any:
    if name == "RolloutClient":
        from rollout_service.client import RolloutClient

        return RolloutClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
