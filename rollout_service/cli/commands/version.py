"""`version`: which version this is.

Invariant: nothing else is printed.
"""

from __future__ import annotations

from rollout_service.version import __version__


def version() -> None:
    """Print the version."""
    print(__version__)
