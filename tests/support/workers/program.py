"""Programs that run SGLang, as forks of a template that has imported it: others spend eight seconds on the imports.

The first process that such a program spawns was forked before, see `spare`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import sglang


def start(
    forks: Mapping[str, str], script: str | Path, *arguments: str, own: Mapping[str, str] | None = None, **how: Any
) -> subprocess.Popen[Any]:
    """Start a program. It ends with the process that this returns, which is not the program's own.

    Args:
        forks: as `tests.support.workers.cluster.forks` gives them.
        own: environment variables besides those that SGLang needs. Programs with other ones have another template.
        how: as `subprocess.Popen` takes it.
    """
    variables = json.dumps(sglang.ENVIRONMENT | dict(own or {}))
    asker = str(Path(__file__).with_name("start_worker.py"))
    command = [sys.executable, asker, f"--program={variables}", str(script), *arguments]
    return subprocess.Popen(command, env={**os.environ, **forks}, **how)


def run_code(
    forks: Mapping[str, str], code: str, asked: Any, folder: Path, **own: str
) -> subprocess.CompletedProcess[str]:
    """Run a program with this code to its end, see `run`.

    Args:
        asked: its argument, as JSON.
        folder: where the program's file goes.
    """
    script = folder / "program.py"
    script.write_text(code)
    return run(forks, script, json.dumps(asked), own=own)


def run(
    forks: Mapping[str, str], script: str | Path, *arguments: str, own: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, and give what it printed. For the arguments see `start`."""
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with start(forks, script, *arguments, own=own, **how) as process:
        try:
            output, said = process.communicate()
        except BaseException:  # a test's time is over
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, said)
