"""What adapters refuse before a trainer sees it: ids that its model has no row for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rollout_service.adapters.checks import TrainingDataError, check_vocabulary
from rollout_service.adapters.torch import collate_packed, collate_padded
from rollout_service.adapters.verl import agent_loop_output, data_proto
from rollout_service.record.trajectory import Provenance, Trajectory
from tests.support.trajectories import make_segment, make_trajectory

ROWS, TOKENS = 4160, 4096


def trajectory(largest: int, **provenance: Any) -> Trajectory:
    """Of a model with 4,160 rows and a tokenizer with 4,096 ids."""
    segment = make_segment()
    ids = np.minimum(segment.token_ids, TOKENS - 1)
    ids[segment.turns[1].start] = largest
    made = Provenance(tokenizer_size=TOKENS, model_vocabulary_size=ROWS, sampling={"temperature": 1.0})
    return make_trajectory(segments=[replace(segment, token_ids=ids)], provenance=replace(made, **provenance))


ADAPTERS: dict[str, Callable[..., Any]] = {
    "padded": lambda t, **rows: collate_padded([t], 0, **rows)["input_ids"],
    "packed": lambda t, **rows: collate_packed([t], **rows)["input_ids"],
    "verl's agent loop": lambda t, **rows: torch.tensor(agent_loop_output(t, **rows)["response_ids"]),
    "verl's batch": lambda t, **rows: data_proto([t], 0, prompt_length=8, response_length=64, **rows)[0]["input_ids"],
}


@pytest.mark.parametrize("adapt", ADAPTERS.values(), ids=ADAPTERS)
def test_an_id_without_a_row_is_refused_by_name_before_the_trainer_fails_on_it(adapt: Callable[..., Any]):
    tokenizer_s, model_s = torch.nn.Embedding(TOKENS, 2), torch.nn.Embedding(ROWS, 2)
    tokenizer_s(adapt(trajectory(TOKENS - 1)))
    with pytest.raises(TrainingDataError, match=rf"'trajectory-0': segments\[0\]\.token_ids\[9\] is {TOKENS}, .*4096"):
        adapt(trajectory(TOKENS))
    model_s(adapt(trajectory(ROWS - 1), vocabulary_size=ROWS))
    with pytest.raises(TrainingDataError, match=r"vocabulary_size says there are 4160 ids"):
        adapt(trajectory(ROWS), vocabulary_size=ROWS)


def test_records_that_say_nothing_of_the_tokenizer_pass_unless_the_trainer_says_its_rows():
    old = trajectory(150_000, tokenizer_size=None, model_vocabulary_size=None)
    check_vocabulary([old])
    with pytest.raises(TrainingDataError, match="150000"):
        check_vocabulary([old], ROWS)
    with pytest.raises(TrainingDataError, match="is -3"):
        check_vocabulary([trajectory(-3, tokenizer_size=None)])
