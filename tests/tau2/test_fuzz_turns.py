"""A few hundred of the turns that `python -m tests.fuzz_turns` plays by the ten thousand."""

from __future__ import annotations

import pytest

from tests.fuzz_turns import PLAYED, play

odd_values = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings", "ignore::SyntaxWarning")


@odd_values
@pytest.mark.parametrize(("name", "kind"), PLAYED)
def test_nothing_that_a_policy_or_a_user_says_is_a_fault_and_each_episode_is_scored_and_replays(name, kind):
    found = [play(name, kind, seed, turns) for seed, turns in ((1, 30), (2, 8))]
    assert sum(episode.turns for episode in found) > 0
    assert [problem for episode in found for problem in episode.problems] == []
