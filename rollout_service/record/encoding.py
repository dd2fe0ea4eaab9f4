"""What both forms of stored trajectories have in common: the schema version, JSON, and the error about a bad record.

Invariant: a record of another schema version is never read.
"""

from __future__ import annotations

import json

from rollout_service.errors import StorageError
from rollout_service.record.schema import shallow
from rollout_service.record.trajectory import SCHEMA_VERSION, Trajectory


def check_version(found: object, where: str) -> None:
    """Check that a record or a part has this release's schema version.

    Args:
        where: where it stands, for the error.

    Raises:
        StorageError: it has another version, or none.
    """
    if not found:
        raise StorageError(f"{where} has no schema version.", "Only what rollout_service wrote can be read.")
    if str(found) != str(SCHEMA_VERSION):
        raise StorageError(
            f"{where} has schema version {found}; this release supports version {SCHEMA_VERSION}.",
            "Use the release of tau2-rollout-service that wrote it.",
        )


def unstorable(trajectory: Trajectory, error: Exception) -> StorageError:
    """The error about a trajectory whose fields have wrong types or values."""
    return StorageError(
        f"Trajectory {trajectory.trajectory_id!r} cannot be stored: {error}.",
        "Give its fields the types that rollout_service.record.trajectory names, and plain JSON values inside.",
    )


def to_json(value: object) -> bytes:
    """JSON of plain values and dataclasses, in UTF-8, or in ASCII where it holds a lone surrogate."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=shallow).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":"), default=shallow).encode()
