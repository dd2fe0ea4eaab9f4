"""Every base task of the three domains, through the whole service: reward 1.0, completed, and a clean audit.

The audit's official replays, a second each, are made of every sixth task here; `make parity` makes them all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from rollout_service.audit.verify import CHECKS, verify
from rollout_service.record.trajectory import Trajectory


def audit(trajectories: list[Trajectory], checks: Sequence[str] = CHECKS) -> list[str]:
    return [str(violation) for _, found in verify(trajectories, checks=checks) for violation in found]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("domain", "count"), [("retail", 114), ("airline", 50), ("telecom", 114)])
def test_every_base_task_played_by_the_scripted_pair_scores_1_and_passes_the_audit(client, domain, count):
    batch = client.collect(domain=domain, split="base", seed=0, progress=False)
    assert len({t.task.task_id for t in batch}) == len(batch) == count
    assert Counter((str(t.outcome), t.reward) for t in batch) == {("completed", 1.0): count}
    assert audit(batch.trajectories, [check for check in CHECKS if check != "reward"]) == []
    assert audit(batch.trajectories[::6], ["reward"]) == []
