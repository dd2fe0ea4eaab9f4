"""What SGLang says of weights that did not come, and whether the old ones are whole then."""

from __future__ import annotations

import pytest

from deploy.engines.sglang_weights import check_received
from rollout_service.errors import WeightError

BROKEN = False, "Failed to receive weights: Connection closed by peer"


def test_tensors_that_came_are_loaded():
    check_received((True, "Succeeded to update parameter online."), 2)


def test_an_engine_of_one_process_that_did_not_get_all_tensors_has_its_old_weights():
    with pytest.raises(WeightError, match=r"did not all come.*closed by peer.*send them again"):
        check_received(BROKEN, 1)


@pytest.mark.parametrize(("result", "processes"), [(BROKEN, 2), ((False, "Failed to update parameter online"), 1)])
def test_weights_that_may_be_loaded_in_part_are_an_error_that_ends_the_replica(result, processes):
    with pytest.raises(RuntimeError, match="SGLang's weight update failed"):
        check_received(result, processes)
