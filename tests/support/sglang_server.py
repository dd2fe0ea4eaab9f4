"""SGLang's HTTP server, with the arguments of `python -m sglang.launch_server`, for `tests.support.workers.program`.

Its processes are forks of this one, which has imported what they need.
"""

from __future__ import annotations

import runpy

from tests.support.workers import spare

if __name__ == "__main__":
    spare.keep()  # the detokenizer, besides the scheduler that any program with SGLang has in reserve
    runpy.run_module("sglang.launch_server", run_name="__main__")
