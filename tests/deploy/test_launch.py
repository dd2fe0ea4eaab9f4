"""An SGLang engine that cannot start says why, and its process lives to say it."""

from __future__ import annotations

import pytest

from tests.support import sglang, tiny_model
from tests.support.workers import program

pytestmark = [pytest.mark.sglang, sglang.needed, pytest.mark.timeout(300)]

START = """
import asyncio, json, sys
from deploy.engines.sglang import SglangEngine
from rollout_service.config import PolicyConfig
from rollout_service.errors import ServiceError

if __name__ == "__main__":
    policy = PolicyConfig(engine="sglang", **json.loads(sys.argv[1]))
    try:
        asyncio.run(asyncio.to_thread(SglangEngine, policy))  # where a replica starts it: not in the main thread
    except ServiceError as error:
        print("refused:", error)
"""


def test_what_ends_the_scheduler_is_the_error(forks, tmp_path):
    settings = {
        "model": str(tiny_model.make(tmp_path / "model")),
        "engine_arguments": sglang.ENGINE_ARGUMENTS | {"attention_backend": "no_such_backend"},
    }
    done = program.run_code(forks, START, settings, tmp_path)
    assert done.stdout.startswith("refused: SGLang does not start: "), done.stderr[-2000:]
    assert "no_such_backend" in done.stdout
    assert done.returncode == 0
