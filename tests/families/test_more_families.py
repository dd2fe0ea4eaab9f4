"""The other half of the families of `test_families`, for the suite's other worker."""

from __future__ import annotations

import pytest

from rollout_service.chat.codec import ChatCodec
from tests.families.play import IN_SUITE, play
from tests.families.shared import FOLDER, families, small_tokenizer

pytestmark = pytest.mark.skipif(not families(), reason=f"needs {FOLDER}: the templates are no part of the repository")


@pytest.mark.parametrize("name", list(families())[1::2])
def test_a_family_s_conversations_are_its_template_s(name: str) -> None:
    report = play(ChatCodec(small_tokenizer(name), name=name), IN_SUITE)
    assert not report.wrong, report.examples
