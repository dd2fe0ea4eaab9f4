"""What an engine tells of its prefix cache by the turns of episodes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.engines.prefix_use import PrefixUse, fixed_share
from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.task_ref import TaskRef

TASK = TaskRef("mock", "base", "create_task_1", 0)


def generation(prompt: int, cached: int, version: int = 0, reason: str = "stop") -> Generation:
    empty = np.zeros(10)
    return Generation(
        empty.astype(np.int32), empty.astype(np.float32), empty.astype(np.int32), reason, prompt, cached, version
    )


def later(known: int, version: int = 0) -> TurnInfo:
    return TurnInfo(task=TASK, turn=1, prefix_version=version, known_tokens=known)


def test_a_prefix_that_was_sent_before_and_is_not_found_was_evicted():
    use = PrefixUse()
    use.computed(1000, 10.0)
    use.add(generation(100, 60), TurnInfo(task=TASK))
    use.add(generation(200, 109), later(110))  # the last sampled token is never in the cache
    use.add(generation(300, 60), later(210))
    figures = use.figures(5000, 4, 3, 0.5)
    assert (figures.capacity, figures.inside, figures.sampling, figures.fixed_share) == (5000, 4, 3, 0.5)
    assert (figures.later_turns, figures.recomputed_tokens) == (2, 150)
    assert figures.recompute_seconds == pytest.approx(1.5)
    assert (figures.latest_turns, figures.context_tokens, figures.shared_tokens) == (3, 210, 60)


def test_the_engine_s_speed_is_that_of_late():
    use = PrefixUse()
    seconds = []
    for tokens, spent in ((1000, 30.0), (70_000, 37.0), (100_000, 40.0), (140_000, 44.0)):
        use.computed(tokens, spent)
        before = use.figures(1, 0, 0, 1.0).recompute_seconds
        use.add(generation(1100, 0), later(1000))
        seconds.append(use.figures(1, 0, 0, 1.0).recompute_seconds - before)
    assert seconds == pytest.approx([30.0, 37 / 70, 37 / 70, 0.1]), "its first steps were slow"


def test_a_page_that_was_not_full_is_not_missing():
    use = PrefixUse(page_size=64)
    use.add(generation(200, 64), later(110))
    assert use.figures(1, 0, 0, 1.0).recomputed_tokens == 0


def test_a_turn_that_was_broken_off_for_want_of_memory_was_computed_again():
    use = PrefixUse()
    use.add(generation(200, 109), later(110), retractions=2)
    assert use.figures(1, 0, 0, 1.0).recomputed_tokens == 420


@pytest.mark.parametrize(
    ("turn", "info"),
    [
        (generation(100, 0), TurnInfo()),
        (generation(100, 0), TurnInfo(turn=3, known_tokens=50)),
        (generation(200, 0, reason="abort"), later(110)),
        (generation(200, 0, version=2), later(110, version=1)),
        (generation(200, 0), later(0)),
    ],
    ids=["http", "no episode", "interrupted", "emptied by new weights", "rewritten history"],
)
def test_a_prefix_that_the_cache_could_not_have_is_not_missing(turn, info):
    use = PrefixUse()
    use.add(turn, info)
    assert use.figures(1, 0, 0, 1.0).later_turns == 0
    assert use.figures(1, 0, 0, 1.0).recomputed_tokens == 0


@given(
    st.floats(1e-3, 1), st.floats(0, 0.1), st.lists(st.integers(1, 100), min_size=2).filter(lambda b: len(set(b)) > 1)
)
def test_the_fixed_share_of_a_step_follows_from_its_moments(base, each, batches):
    steps = [base + each * turns for turns in batches]
    moments = [
        len(batches),
        sum(batches),
        sum(steps),
        sum(turns**2 for turns in batches),
        sum(turns * step for turns, step in zip(batches, steps, strict=True)),
        0,
    ]
    assert fixed_share(moments) == pytest.approx(base * len(batches) / sum(steps), abs=1e-4)


def test_without_steps_of_different_sizes_the_whole_time_counts_as_fixed():
    assert fixed_share(None) == fixed_share([0.0] * 6) == fixed_share([2, 8, 1.0, 32, 4.0, 8]) == 1
