"""SGLang's own parser of tool calls reads what the codec's turns write."""

from __future__ import annotations

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
    run = program.run(forks, second_opinion.__file__, *asked)
    assert run.returncode == 0, run.stderr[-2000:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in run.stdout.splitlines()]
    assert [row[:2] for row in rows] == [["kimi-k2", "kimi_k2"], ["devstral-2507", "mistral"]]
    for _, _, written, alike, damaged, *others in rows:
        assert int(written) == int(alike) > 5
        assert int(damaged) == sum(map(int, others)) > 20
