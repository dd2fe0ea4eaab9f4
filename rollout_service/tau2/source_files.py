"""SourceFiles: the files that a domain was read from, and whether their contents are still the same.

Invariant: everything that a process holds of a domain was read from one state of its files.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path

from rollout_service.errors import Tau2Error
from rollout_service.tau2 import compat
from rollout_service.tau2.once import once

_Stamp = tuple[int, int, int]


class SourceFiles:
    """A set of files, as they were when this object was made."""

    def __init__(self, paths: list[Path]) -> None:
        self._stamps = {path: _stamp(path) for path in paths}
        self._contents = {path: _content(path) for path in paths}
        named = sorted((path.name, self._contents[path]) for path in paths)
        self.fingerprint = hashlib.sha256(repr(named).encode()).hexdigest()
        """Hash of the files' names and contents, independent of their folder."""

    def check_unchanged(self) -> None:
        """Check that no file changed since. Usually this reads only each file's size and time.

        Raises:
            Tau2Error: a file's contents changed, or the file is gone.
        """
        for path, stamp in self._stamps.items():
            now = _stamp(path)
            if now == stamp:
                continue
            if _content(path) != self._contents[path]:
                raise Tau2Error(
                    f"τ²-bench's data file {path} changed while the service was running.",
                    "Start the service again, so that all episodes use the same data; what is finished is kept.",
                )
            self._stamps[path] = now  # touched, but with the same contents


@once
def of(domain: str) -> SourceFiles:
    """The data files of a domain, as they were at the first call in this process. Call it before reading them.

    They are the files that τ²'s own domains name (each `*_PATH` of the `utils` module) and the splits beside the tasks.
    For a folder (`*_PATH` or `*_DIR`) they are the JSON files in it.
    """
    constructor = compat.registry.get_env_constructor(domain)
    function = constructor.func if isinstance(constructor, functools.partial) else constructor
    module = sys.modules.get(f"{function.__module__.rpartition('.')[0]}.utils")
    names = vars(module) if module else {}
    named = [Path(value) for name, value in names.items() if name.endswith("_PATH")]
    splits = [path.parent / f"split_{path.stem}.json" for path in named]
    folders = [Path(value) for name, value in names.items() if name.endswith(("_PATH", "_DIR"))]
    data = {path.parent for path in named if path.is_file()}
    inside = [path for folder in folders if folder.parent in data for path in sorted(folder.glob("*.json"))]
    return SourceFiles([path for path in dict.fromkeys([*named, *splits, *inside]) if path.is_file()])


def _stamp(path: Path) -> _Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
