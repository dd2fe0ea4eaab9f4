"""What a request may say of its own: sampling, against the service's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rollout_service.policy.base import Generation, Sampling
from tests.support import episodes


class Watched(episodes.LocalPolicy):
    """Remembers how it was asked to sample."""

    async def generate(self, input_ids: Any, sampling: Any, session_id: str, metadata: dict[str, Any]) -> Generation:
        self.sampling = sampling
        return await super().generate(input_ids, sampling, session_id, metadata)


@pytest.mark.parametrize("own", [None, Sampling(temperature=0.25, max_new_tokens=900, stop_token_ids=(5,))])
def test_a_request_s_own_sampling_goes_over_the_service_s(own):
    config = episodes.settings(policy__sampling={"temperature": 0.5})
    policy = Watched(config)
    runner = episodes.runner(config, policy)
    request = dataclasses.replace(episodes.request(episodes.task("mock")), sampling=own)
    trajectory = runner.run(request)
    chosen = own or config.policy.sampling
    assert policy.sampling.temperature == chosen.temperature
    assert policy.sampling.max_new_tokens == chosen.max_new_tokens
    stops = set(policy.sampling.stop_token_ids)
    assert stops == {*chosen.stop_token_ids, *episodes.codec().stop_token_ids}, "a turn still ends"
    assert trajectory.provenance.sampling == chosen.model_dump()
    assert "sampling" not in request.identity()
