"""Whole episodes with every style of chat template: rewarded, and clean in the audit."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout_service.audit.verify import verify
from tests.families.episodes import Lab
from tests.support import episodes
from tests.support.family_templates import STYLES, tokenizer


@pytest.mark.parametrize(("style", "history"), zip(STYLES, ["template", "append"] * len(STYLES), strict=False))
def test_the_gold_actions_are_written_read_and_rewarded(style: str, history: str, tmp_path: Path) -> None:
    tokenizer(style).save_pretrained(tmp_path)
    settings = episodes.settings(
        policy__tokenizer=str(tmp_path),
        policy__history=history,
        policy__accepted_losses=["text_beside_calls"],
        tasks__domain="telecom",
    )
    trajectory = episodes.runner(settings).run(episodes.request(episodes.task("telecom"), 0))
    assert trajectory.reward == 1.0
    made = trajectory.provenance
    assert made.tool_parser == ("harmony" if style == "channels" else "learned")
    assert made.greeting == ("left_out" if style == "ids of nine characters" else "kept")
    (found,) = [violations for _, violations in verify([trajectory])]
    assert found == []


def test_a_model_plays_gold_turns_and_its_own_on_the_transformers_engine(tmp_path: Path) -> None:
    lab = Lab(tokenizer("keys and values, no closing"), tmp_path, {}, policy__engine_arguments={"device": "cpu"})
    try:
        played = lab.play("template", ["telecom"], tasks=2, free=1)
    finally:
        lab.close()
    assert (played.gold, played.rewarded, played.free) == (2, 2, 1)
    assert played.tokens > 100
    assert not played.wrong
