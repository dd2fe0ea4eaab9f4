"""Every number that says how to sample has a range, and what is within it is computed with as it stands."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.engines import packed
from rollout_service import RolloutConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError

NUMBER = st.floats() | st.integers() | st.sampled_from([1e-40, 1e-7, 1e-6, 1e6, 2**31 - 1, 2**31, 2**63, 10**400])


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("temperature", math.inf, "Set it to at most 1000000"),
        ("temperature", math.nan, "Set it to at most 1000000"),
        ("temperature", 1e-40, "1e-40 is neither 0, which is greedy, nor at least 1e-06"),
        ("temperature", True, "True is not a number"),
        ("top_p", 1e-45, "Set it to at least 1e-06"),
        ("top_k", 2147483648, "Set it to at most 2147483647"),
        ("top_k", -2, "Set it to at least -1"),
        ("max_new_tokens", 2**31, "Set it to at most 2147483647"),
        ("max_new_tokens", False, "False is not a number"),
        ("stop_token_ids", [2**31], "Set it to at most 2147483647"),
        ("stop_token_ids", [-1], "Set it to at least 0"),
    ],
    ids=str,
)
def test_a_number_that_would_end_an_engine_is_refused_by_the_configuration_and_by_a_copy_of_it(field, value, reason):
    setting = f"policy.sampling.{field}"
    for make in (
        lambda: RolloutConfig.load(None, {setting: value}, {}),
        lambda: RolloutConfig().with_overrides({setting: value}),
    ):
        with pytest.raises(ConfigError) as raised:
            make()
        assert setting in str(raised.value)
        assert reason in str(raised.value)


@given(
    temperature=NUMBER,
    top_p=NUMBER,
    top_k=NUMBER,
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    seed=st.integers(0, 9),
)
@settings(deadline=None)
def test_whatever_is_accepted_gives_a_token_of_the_vocabulary_with_a_finite_log_prob(
    temperature, top_p, top_k, scale, seed
):
    given_values = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    accepted = {}
    for name, value in given_values.items():
        try:
            accepted |= Sampling(**{name: value}).model_dump(include={name})
        except ValueError:
            continue
    torch.manual_seed(seed)
    logits = torch.randn(3, 50) * scale
    tokens, logprobs = packed.sample(logits.clone(), [Sampling(**accepted)] * 3)
    assert all(0 <= token < 50 for token in tokens)
    assert all(math.isfinite(logprob) for logprob in logprobs)
    if accepted.get("temperature") == 0:
        assert tokens == logits.argmax(-1).tolist()
    elif accepted.get("top_k") == 1 or accepted.get("top_p") == 1e-6:  # a high temperature makes tokens equally likely
        likeliest = (logits / accepted.get("temperature", 1.0)).log_softmax(-1).amax(-1).tolist()
        assert logprobs == pytest.approx(likeliest, abs=1e-5)
