"""SGLang's own parser of tool calls reads what the codec's turns write."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.families import second_opinion
from tests.families.shared import FOLDER, families
from tests.support import sglang
from tests.support.workers import program

pytestmark = [
    pytest.mark.sglang,
    sglang.needed,
    pytest.mark.skipif(not families(), reason=f"needs {FOLDER}: the templates are no part of the repository"),
    pytest.mark.timeout(300),
]


def test_sglang_reads_the_calls_that_the_codec_writes(forks: dict[str, str]) -> None:
    asked = ["kimi-k2", "devstral-2507", "--conversations", "8"]
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with program.start(forks, second_opinion.__file__, *asked, **how) as process:
        try:
            output, said = process.communicate(timeout=280)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0, said[-2000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()]
    assert [row[:2] for row in rows] == [["kimi-k2", "kimi_k2"], ["devstral-2507", "mistral"]]
    for _, _, written, alike, damaged, *others in rows:
        assert int(written) == int(alike) > 5
        assert int(damaged) == sum(map(int, others)) > 20
