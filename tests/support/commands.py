"""Runs the command line in this process: a process of its own would import for seconds what is here already."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import traceback
from pathlib import Path
from unittest import mock

from rollout_service.cli import main

ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith(("TAU2_", "ROLLOUT_"))},
    "COLUMNS": "160",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What commands see of this process's environment."""


def environment() -> dict[str, str]:
    """What a command in a process of its own sees. Ray sets a variable here if this process's cluster wants a token."""
    return ENVIRONMENT | {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What `rollout-service` with these arguments prints, and its exit code."""
    given = [str(argument) for argument in arguments]
    with (
        mock.patch.dict(os.environ, ENVIRONMENT, clear=True),
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        try:
            main(given)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:  # as the interpreter ends
            traceback.print_exc()
            code = 1
    return subprocess.CompletedProcess(given, code, output.getvalue(), said.getvalue())


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    given = [sys.executable, "-m", "rollout_service", *map(str, arguments)]
    return subprocess.run(given, capture_output=True, text=True, timeout=280, check=False, env=environment())
