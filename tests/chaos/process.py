"""A Python process that is given orders as lines of JSON and answers with lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Process:
    """A module that runs as a process of its own, and is to end when its standard input does."""

    def __init__(
        self, module: str, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            folder: where its errors go, into a file named after the module.
            environment: variables that it has beside this process's.
        """
        self._errors = folder / f"{module.rpartition('.')[2]}.log"
        command = [sys.executable, "-m", module, *arguments]
        with open(self._errors, "ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | dict(environment or {}),
            )
        self.pid = self._process.pid
        self._said: list[dict[str, Any]] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # what a library prints
                self._said.append(json.loads(line))

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def errors(self) -> str:
        """The end of what it wrote to standard error."""
        return self._errors.read_text()[-2000:]

    def heard(self) -> dict[str, Any] | None:
        """The next answer, if there is one."""
        return self._said.pop(0) if self._said else None

    def answer(self, seconds: float) -> dict[str, Any]:
        """Wait for the next answer.

        Raises:
            RuntimeError: it ended, or took longer.
        """
        deadline = time.monotonic() + seconds
        while (said := self.heard()) is None:
            if not self.runs or time.monotonic() > deadline:
                raise RuntimeError(f"{self._process.args} did not come up:\n{self.errors}")
            time.sleep(0.05)
        return said

    def say(self, line: Mapping[str, Any]) -> None:
        """Give it an order."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it just died, as `runs` will say
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            self._process.stdin.flush()

    def interrupt(self) -> None:
        """Let it stop what it does, as after Ctrl-C."""
        if self.runs:
            self._process.send_signal(signal.SIGINT)

    def end(self, seconds: float = 30.0) -> None:
        """End it in order: its standard input ends. Kill it if that takes longer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._process.kill()
        self.reap()

    def reap(self) -> None:
        """Take note of its death, if it died."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5)
