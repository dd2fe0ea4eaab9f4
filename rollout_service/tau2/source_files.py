"""SourceFiles: the files that a domain was read from, and whether they still say the same.

Invariant: everything of a domain that a process holds was read from one state of its files.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rollout_service.errors import Tau2Error

_Stamp = tuple[int, int, int]


class SourceFiles:
    """A set of files as they were when this was made."""

    def __init__(self, paths: list[Path]) -> None:
        self._stamps = {path: _stamp(path) for path in paths}
        self._contents = {path: _content(path) for path in paths}
        self.fingerprint = hashlib.sha256("".join(self._contents[path] for path in sorted(paths)).encode()).hexdigest()
        """Of the contents, whatever the files' places."""

    @classmethod
    def of(cls, constructor: Callable[..., Any]) -> SourceFiles:
        """The data files that the domain of this environment constructor names: each `*_PATH` of its `utils` module."""
        function = constructor.func if isinstance(constructor, functools.partial) else constructor
        package = function.__module__.rpartition(".")[0]
        names = vars(sys.modules.get(f"{package}.utils", object()) or object()) if package else {}
        return cls([Path(value) for name, value in names.items() if name.endswith("_PATH") and Path(value).is_file()])

    def check(self) -> None:
        """See that nothing changed since. Costs a look at each file's size and time.

        Raises:
            Tau2Error: a file's contents changed, or it is gone.
        """
        for path, stamp in self._stamps.items():
            now = _stamp(path)
            if now == stamp:
                continue
            if _content(path) != self._contents[path]:
                raise Tau2Error(
                    f"τ²-bench's data file {path} changed while the service was running.",
                    "Start the service again, so that all episodes are of the same data; what is finished is kept.",
                )
            self._stamps[path] = now  # touched, but the same


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
