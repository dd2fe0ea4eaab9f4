"""SGLang's HTTP server, started as `python -m sglang.launch_server` starts it: `python -m tests.support.sglang_server`
with the same arguments.

Its processes are forks of this one, which has imported what they need.
"""

from __future__ import annotations

import runpy

from tests.support.workers import spare

if __name__ == "__main__":
    import sglang.srt.entrypoints.http_server
    import sglang.srt.managers.detokenizer_manager
    import sglang.srt.managers.scheduler  # noqa: F401

    spare.keep(2)  # a scheduler and a detokenizer
    runpy.run_module("sglang.launch_server", run_name="__main__")
