"""NCCL's memory must be shared in one way by all ranks: seen to, or refused, before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from rollout_service.errors import WeightError
from rollout_service.policy import process_group
from rollout_service.policy.process_group import match_nccl
from rollout_service.policy.weight_group import WeightGroup
from rollout_service.policy.weights import GroupTerms

CUMEM = "NCCL_CUMEM_ENABLE"


@pytest.fixture
def environment(monkeypatch) -> Any:
    """Sets the variable, or removes it, for one test, and whether NCCL is up."""

    def of(own: str | None, up: bool) -> None:
        monkeypatch.setenv(CUMEM, own or "")  # so that it is put back whatever happens
        if own is None:
            monkeypatch.delenv(CUMEM)
        monkeypatch.setattr(process_group, "_nccl_is_up", lambda: up)

    return of


@pytest.mark.parametrize(
    ("own", "replicas", "up", "after"),
    [
        (None, "0", False, "0"),
        ("0", "0", True, "0"),
        (None, None, True, None),
        ("1", "1", True, "1"),
        (None, "1", False, None),
    ],
)
def test_a_trainer_of_which_nccl_is_not_up_yet_gets_what_the_replicas_have(environment, own, replicas, up, after):
    import os

    environment(own, up)
    match_nccl(replicas)
    assert os.environ.get(CUMEM) == after


@pytest.mark.parametrize(
    ("own", "replicas", "up", "message"),
    [
        ("1", "0", False, "NCCL_CUMEM_ENABLE is '1' in this process and '0' in the replicas.*with NCCL_CUMEM_ENABLE=0"),
        (None, "0", True, "is not set, and NCCL is up already, .*with NCCL_CUMEM_ENABLE=0"),
        ("0", None, False, "is '0' in this process and not set in the replicas.*policy.env_vars"),
    ],
)
def test_a_trainer_whose_nccl_would_die_with_the_replicas_is_refused_before_they_are_asked(
    environment, own, replicas, up, message
):
    environment(own, up)
    with pytest.raises(WeightError, match=message):
        WeightGroup.meet("127.0.0.1", "nccl", GroupTerms(2, replicas), fleet=None, timeout_seconds=1.0)


def test_groups_of_other_backends_do_not_bring_nccl_up(tmp_path):
    from torch import distributed

    assert not process_group._nccl_is_up()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert not process_group._nccl_is_up()
    finally:
        distributed.destroy_process_group()
