"""What NCCL's ranks must share is seen to, or refused by the variable's name, before anything is sent."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.errors import WeightError
from rollout_service.policy import nccl, process_group
from rollout_service.policy.nccl import NcclSettings, check_alike, missing
from rollout_service.policy.weight_group import WeightGroup
from rollout_service.policy.weights import GroupTerms

CUMEM = "NCCL_CUMEM_ENABLE"
SGLANG = {CUMEM: "0", "NCCL_NVLS_ENABLE": "0"}
"""What SGLang sets in its processes."""

NAMES = list(nccl._UNSET)
values = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["0", "1"]))


def here(**variables: str) -> NcclSettings:
    return NcclSettings("host", variables, "2.27.5")


@pytest.mark.parametrize(
    ("own", "replicas", "is_up", "set_here"),
    [
        ({}, SGLANG, False, SGLANG),
        ({CUMEM: "0"}, SGLANG, True, {}),
        ({}, {}, True, {}),
        ({CUMEM: "1"}, {}, True, {}),
        ({}, {CUMEM: "1"}, False, {}),
        ({}, {"NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "0"}, False, {"NCCL_P2P_DISABLE": "1"}),
        ({"NCCL_IB_DISABLE": "1"}, {}, True, {}),
    ],
    ids=["sglang", "equal", "unset", "default 1", "default 1 there", "p2p", "one host needs no network"],
)
def test_what_differs_and_is_free_to_be_set_is_set_as_the_replicas_have_it(own, replicas, is_up, set_here):
    assert missing(here(**own), [here(**replicas)], is_up=is_up) == set_here


@pytest.mark.parametrize(
    ("own", "replicas", "is_up", "message"),
    [
        (
            {CUMEM: "1"},
            SGLANG,
            False,
            f"{CUMEM} is '1' in this process and '0' in the replicas.*trainer with {CUMEM}=0",
        ),
        ({}, SGLANG, True, f"{CUMEM} is not set, and NCCL is up already, in .*'0' in the .*trainer with {CUMEM}=0"),
        ({CUMEM: "0"}, {}, False, "is '0' in this process and not set in the replicas.*policy.env_vars: .*ENABLE: '0'"),
        ({"NCCL_NVLS_ENABLE": "0"}, {"NCCL_NVLS_ENABLE": "1"}, False, "NCCL_NVLS_ENABLE is '0' in .* and '1' in"),
        ({"NCCL_SHM_DISABLE": "1"}, {}, False, "NCCL_SHM_DISABLE is '1' in .*env_vars: .NCCL_SHM_DISABLE: '1'"),
    ],
    ids=["set", "up", "set here alone", "nvls", "shm"],
)
def test_what_can_not_be_made_alike_is_refused_by_its_name_with_both_values(own, replicas, is_up, message):
    with pytest.raises(WeightError, match=message):
        missing(here(**own), [here(**replicas)], is_up=is_up)


def test_between_hosts_the_network_counts_too():
    other = NcclSettings("elsewhere", {"NCCL_IB_DISABLE": "1"}, "2.27.5")
    assert missing(here(), [other], is_up=False) == {"NCCL_IB_DISABLE": "1"}
    with pytest.raises(WeightError, match=r"NCCL_IB_DISABLE is not set.*with NCCL_IB_DISABLE=1"):
        missing(here(), [other], is_up=True)


def test_other_versions_of_nccl_are_refused_where_both_are_known():
    with pytest.raises(WeightError, match=r"2\.27\.5 on host and 2\.28\.3 on other.*Install the same torch"):
        missing(here(), [NcclSettings("other", {}, "2.28.3")], is_up=False)
    assert missing(here(), [NcclSettings("other", {}, None)], is_up=False) == {}


@given(values, values, st.booleans())
def test_after_what_is_missing_was_set_all_ranks_agree_or_it_was_refused(own, replicas, is_up):
    ours, theirs = here(**own), here(**replicas)
    try:
        found = missing(ours, [theirs], is_up=is_up)
    except WeightError:
        with pytest.raises(WeightError, match="differs between"):
            check_alike([ours, theirs])
        return
    assert not found or not is_up
    assert not found.keys() & own.keys(), "what the user set is never changed"
    check_alike([here(**own | found), theirs])


@pytest.fixture
def cumem(monkeypatch) -> Any:
    """Sets the variable, or removes it, for one test, and whether NCCL is up."""

    def of(own: str | None, is_up: bool) -> None:
        for name in SGLANG:
            monkeypatch.setenv(name, "")  # so that it is put back whatever happens
            monkeypatch.delenv(name)
        if own is not None:
            monkeypatch.setenv(CUMEM, own)
        monkeypatch.setattr(process_group, "_nccl_is_up", lambda: is_up)

    return of


def test_a_trainer_gets_the_replicas_variables_before_its_nccl_is_up(cumem):
    cumem(None, False)
    process_group.match_nccl([NcclSettings(socket.gethostname(), SGLANG)])
    assert {name: os.environ.get(name) for name in SGLANG} == SGLANG


def test_a_trainer_whose_nccl_would_die_with_the_replicas_is_refused_before_they_are_asked(cumem):
    cumem("1", False)
    terms = GroupTerms(2, (NcclSettings(socket.gethostname(), SGLANG),))
    with pytest.raises(WeightError, match=f"{CUMEM} is '1' in this process and '0' in the replicas"):
        WeightGroup.meet("127.0.0.1", "nccl", terms, fleet=None, timeout_seconds=1.0)


def test_replicas_whose_nccl_is_not_set_up_alike_make_no_group(cumem):
    cumem("0", False)
    terms = GroupTerms(3, (here(**{CUMEM: "0"}), here()))
    with pytest.raises(WeightError, match=f"{CUMEM} differs between the replicas: '0', not set"):
        WeightGroup.meet("127.0.0.1", "nccl", terms, fleet=None, timeout_seconds=1.0)


@pytest.mark.parametrize("backend", ["nccl", "gloo"])
def test_replicas_of_which_only_some_connect_when_they_join_make_no_group(backend):
    terms = GroupTerms(3, (NcclSettings("one", {}), NcclSettings("other", {}, connects=False)))
    with pytest.raises(WeightError, match="when they join on one, and in their first update on other"):
        WeightGroup.meet("127.0.0.1", backend, terms, fleet=None, timeout_seconds=1.0)


def test_groups_of_other_backends_do_not_bring_nccl_up(tmp_path):
    from torch import distributed

    assert not process_group._nccl_is_up()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert not process_group._nccl_is_up()
    finally:
        distributed.destroy_process_group()
