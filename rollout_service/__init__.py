"""rollout_service: τ²-bench episodes at scale, as masked token trajectories for any trainer.

Importing this package is cheap: it needs no Ray cluster, no torch and no network. The client pulls in Ray when it is
first used.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from rollout_service.batch import IncompleteCollection, TrajectoryBatch
from rollout_service.config import RolloutConfig
from rollout_service.errors import RolloutError
from rollout_service.trajectory import Outcome, TaskRef, TokenSegment, Trajectory, Turn

if TYPE_CHECKING:
    from rollout_service.client import RolloutClient

try:
    __version__ = version("tau2-rollout-service")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0.0.0"

__all__ = [
    "IncompleteCollection",
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


def __getattr__(name: str) -> Any:
    if name == "RolloutClient":
        from rollout_service.client import RolloutClient

        return RolloutClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
