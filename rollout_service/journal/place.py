"""Where a journal may lie, and who owns it.

Invariant: a journal has one owner at a time. A database needs a disk of this machine: network file systems do not keep
what they promise about locks and syncs. A log has a fence of its own, see `rollout_service.journal.log`.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Literal

from rollout_service.errors import ServiceError

PARTS = "parts"
"""Folder of the parts in the journal's directory."""

Form = Literal["sqlite", "log"]
"""A database, for a disk of this machine; or a log, which needs nothing of the file system but files."""

FILES: Mapping[Form, str] = {"sqlite": "journal.sqlite", "log": "log"}
"""Where each form lies in the journal's directory."""

_LOCK = "owner.lock"

_POLL_SECONDS = 0.05
"""Time between two tries to become the owner."""

_NETWORK = {
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "afs",
    "9p",
    "ceph",
    "lustre",
    "glusterfs",
    "beegfs",
    "gpfs",
    "pvfs2",
}
"""Types of file systems that other machines share."""

_FUSE_ON_DISK = {"fuseblk", "fuse.ntfs-3g", "fuse.fuse-overlayfs", "fuse.lxcfs"}
"""File systems in user space that lie on a disk of this machine. The others are remote, such as sshfs and s3fs."""


def check_file_system(folder: Path, mounts: str | None = None) -> None:
    """Check that the folder lies on a disk of this machine, as far as Linux says.

    Args:
        mounts: the mounted file systems as /proc/mounts lists them; None: those of this machine.

    Raises:
        ServiceError: it lies on a network file system or an object store.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/mounts").read_text()
        except OSError:  # no Linux
            return
    mount, kind = _file_system(folder.resolve(), mounts)
    if kind in _NETWORK or (kind.startswith("fuse") and kind not in _FUSE_ON_DISK):
        raise ServiceError(
            f"service.journal: {folder} lies on a network file system ({kind}, mounted at {mount}), where a database "
            "can be damaged.",
            "Set service.journal_form to log, which is made for such storage; or choose a folder on a disk of the "
            "coordinator's machine, or on a block device that is attached to it.",
        )


def check_form(folder: Path, form: Form) -> None:
    """Check that the folder has no journal of another form, whose collections would be forgotten.

    Raises:
        ServiceError: it has one.
    """
    for other, name in FILES.items():
        if other != form and (folder / name).exists():
            raise ServiceError(
                f"The journal in {folder} has the form {other}, and service.journal_form is {form}.",
                f"Set service.journal_form to {other}, or choose another folder for service.journal.",
            )


def _file_system(folder: Path, mounts: str) -> tuple[str, str]:
    """Mount point and type of the file system that holds the folder. A later mount hides an earlier one."""
    found = ("/", "")
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = fields[1].replace("\\040", " ")
        if folder.is_relative_to(mount) and len(mount) >= len(found[0]):
            found = mount, fields[2]
    return found


def own(folder: Path, service: str, seconds: float = 0.0, *, must_lock: bool = True) -> IO[str]:
    """Become the journal's owner until this process ends or the returned file is closed.

    Args:
        seconds: how long to wait for an owner that is about to end.
        must_lock: whether a file system without locks is refused. Where it is not, a second owner takes over.

    Raises:
        ServiceError: another process owns it.
        OSError: the folder cannot be written.
    """
    lock = open(folder / _LOCK, "a+", encoding="utf-8")  # noqa: SIM115
    deadline = time.monotonic() + seconds
    while not _locked(lock, must_lock):
        if time.monotonic() >= deadline:
            lock.seek(0)
            owner = lock.read() or "another service"
            lock.close()
            raise ServiceError(
                f"The journal {folder} belongs to {owner}, which runs.",
                "Stop that service, or give this one a journal of its own (service.journal).",
            )
        time.sleep(_POLL_SECONDS)
    lock.truncate(0)
    lock.write(f"service {service} (process {os.getpid()} on {socket.gethostname()})")
    lock.flush()
    return lock


def _locked(lock: IO[str], must_lock: bool) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        if must_lock:
            raise
    return True
