"""Starting an SGLang engine so that one which cannot start says why.

Invariant: what ends a scheduler while it loads the model is raised here. SGLang writes it to the log and sends this
process SIGQUIT, which would end the replica before it had said anything.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import signal
import tempfile
from pathlib import Path
from typing import Any

from rollout_service.errors import ServiceError, last_cause


def launch(arguments: dict[str, Any]) -> Any:
    """Start an engine: `sglang.Engine(**arguments)`. Blocks until the model is loaded.

    Raises:
        ServiceError: it cannot start, and why. The process is of no more use then: others of the engine may be dying.
    """
    from sglang.srt.entrypoints.engine import Engine

    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        scheduler = staticmethod(functools.partial(_run_scheduler, str(errors)))
        before = _on_sigquit(int(signal.SIG_IGN))
        try:
            engine = type("Engine", (Engine,), {"run_scheduler_process_func": scheduler})(**arguments)
        except Exception as error:
            cause = last_cause(errors.read_text()) if errors.exists() else ""
            raise ServiceError(
                f"SGLang does not start: {cause or error}",
                "Change policy.engine_arguments or policy.model; the replica's log says more.",
            ) from error
        _on_sigquit(before)
        return engine


def _run_scheduler(errors: str, *args: Any, **kwargs: Any) -> None:
    """A scheduler's process. Its errors go to a file too, which may be deleted once it is open."""
    from sglang.srt.managers.scheduler import run_scheduler_process

    handler = logging.FileHandler(errors)
    handler.setLevel(logging.ERROR)
    logging.getLogger("sglang").addHandler(handler)
    run_scheduler_process(*args, **kwargs)


def _on_sigquit(handler: int | None) -> int | None:
    """Set the C library's handler and give the one before; Python's own `signal` works in the main thread only."""
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    before: int | None = function(signal.SIGQUIT, handler)
    return before
