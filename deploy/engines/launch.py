"""Starts an SGLang engine, and says why if it cannot start.

Invariant: an error that ends a scheduler while it loads the model is raised here. SGLang itself only logs it and sends
this process SIGQUIT, which would end the replica before it could report anything.

The engine has no detokenizer process. Nothing would be sent to it, because the engine gives out ids and never text
(`skip_tokenizer_init`), and each costs several CPU seconds at the start and half a gigabyte of memory.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import signal
import tempfile
from pathlib import Path
from typing import Any

import rollout_service.garbage as garbage
from deploy.engines.connecting import connect_when_joining
from deploy.engines.pending_tokens import count_in_pauses
from rollout_service.errors import ServiceError, last_cause


def launch(arguments: dict[str, Any]) -> Any:
    """Start an engine: `sglang.Engine(**arguments)`. Blocks until the model is loaded.

    `arguments` must have `skip_tokenizer_init`.

    Raises:
        ServiceError: it cannot start; says why. This process cannot be used any more then, because other processes of
            the engine may be ending.
    """
    with garbage.left_alone():
        from sglang.srt.entrypoints.engine import Engine

    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        scheduler = staticmethod(functools.partial(_run_scheduler, str(errors)))
        before = _on_sigquit(int(signal.SIG_IGN))
        try:
            ours = {
                "run_scheduler_process_func": scheduler,
                "_launch_detokenizer_subprocesses": staticmethod(_no_processes),
            }
            engine = type("Engine", (Engine,), ours)(**arguments)
        except Exception as error:
            cause = last_cause(errors.read_text()) if errors.exists() else ""
            raise ServiceError(
                f"SGLang does not start: {cause or error}",
                "Change policy.engine_arguments or policy.model; the replica's log says more.",
            ) from error
        _on_sigquit(before)
        return engine


def _run_scheduler(errors: str, *args: Any, **kwargs: Any) -> None:
    """Run a scheduler's process. Its errors also go to a file, which may be deleted once it is open."""
    with garbage.left_alone():
        from sglang.srt.managers.scheduler import Scheduler, run_scheduler_process

    count_in_pauses(Scheduler)
    connect_when_joining()
    handler = logging.FileHandler(errors)
    handler.setLevel(logging.ERROR)
    logging.getLogger("sglang").addHandler(handler)
    run_scheduler_process(*args, **kwargs)


def _no_processes(**_: Any) -> tuple[list[Any], list[str]]:
    """Stands in for SGLang's start of detokenizers. Returns their processes and names."""
    return [], []


def _on_sigquit(handler: int | None) -> int | None:
    """Set the C library's handler and return the previous one. Python's own `signal` works only in the main thread."""
    function = ctypes.CDLL(None).signal
    function.argtypes, function.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
    before: int | None = function(signal.SIGQUIT, handler)
    return before
