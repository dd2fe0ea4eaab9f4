"""Real families' chat templates, where they lie beside the checkout: proved, and right in random conversations."""

from __future__ import annotations

import pytest

from rollout_service.chat.codec import ChatCodec
from tests.families.play import IN_SUITE, play
from tests.families.shared import FOLDER, families, small_tokenizer

pytestmark = pytest.mark.skipif(not families(), reason=f"needs {FOLDER}: the templates are no part of the repository")


@pytest.mark.parametrize("name", list(families())[::2])
def test_a_family_s_conversations_are_its_template_s(name: str) -> None:
    """The other half of the families is in `test_more_families`, for the other worker."""
    report = play(ChatCodec(small_tokenizer(name), name=name), IN_SUITE)
    assert not report.wrong, report.examples


@pytest.mark.parametrize(
    ("name", "arguments", "rewrites"),
    [
        ("qwen3.6", {"preserve_thinking": True}, False),
        ("nemotron-3-nano", {"truncate_history_thinking": False}, False),
        ("glm-4.5", {"enable_thinking": False}, False),
        ("qwen3-hybrid", {"enable_thinking": False}, True),
        ("gpt-oss", {"reasoning_effort": "high"}, True),
    ],
)
def test_template_arguments_reach_every_rendering(name: str, arguments: dict[str, object], rewrites: bool) -> None:
    codec = ChatCodec(small_tokenizer(name), name=name, template_arguments=arguments)
    report = play(codec, range(4))
    assert not report.wrong, report.examples
    assert codec.rewrites_history is rewrites
