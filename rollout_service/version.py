"""Version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tau2-rollout-service")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0.0.0"
