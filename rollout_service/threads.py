"""Work in a thread that lives as long as the process.

Invariant: the caller waits for the work, and gets what it raises.
"""

from __future__ import annotations

import concurrent.futures
import threading
from collections.abc import Callable


def run_in_lasting_thread(work: Callable[[], object]) -> None:
    """Do it in this thread if it is the main one, else in one that stays until the process ends: on Linux the processes
    of a cluster that Ray starts are killed with the thread that started them."""
    if threading.current_thread() is threading.main_thread():
        work()
        return
    done: concurrent.futures.Future[None] = concurrent.futures.Future()

    def run() -> None:
        try:
            work()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)
            return
        threading.Event().wait()

    threading.Thread(target=run, name="rollout-client-ray", daemon=True).start()
    done.result()
