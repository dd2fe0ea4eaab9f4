"""Which sides of an episode share a gate."""

from __future__ import annotations

from typing import Any

import pytest

from rollout_service.pacing import endpoints
from tests.support.episodes import settings

USER = {"user__model": "openai/one", "user__base_url": "http://localhost:1/v1", "user__max_concurrency": 7}


def judged(model: str, url: str | None, **others: Any) -> Any:
    return settings(
        evaluation__judge__model=model, evaluation__judge__base_url=url, evaluation__judge__max_concurrency=5, **others
    )


def test_a_judge_that_is_the_user_s_model_at_its_address_shares_the_user_s_places():
    config = judged("openai/one", "http://localhost:1/v1", **USER)
    gates = endpoints.gates(config)
    assert gates["judge"] is gates["user"]
    assert endpoints.of(config)["judge"].bound == 7


@pytest.mark.parametrize(("model", "port"), [("openai/other", 1), ("openai/one", 2)])
def test_another_model_or_address_has_limits_of_its_own(model, port):
    config = judged(model, f"http://localhost:{port}/v1", **USER)
    gates, found = endpoints.gates(config), endpoints.of(config)
    assert gates["judge"] is not gates["user"]
    assert (found["user"].bound, found["judge"].bound) == (7, 5)


def test_a_side_that_asks_no_model_has_no_gate():
    assert endpoints.gates(settings()) == {}
    assert set(endpoints.gates(settings(**USER))) == {"user"}
    assert set(endpoints.gates(judged("openai/one", None))) == {"judge"}
    assert set(endpoints.gates(settings(evaluation__type="all_with_nl_assertions"))) == {"judge"}


def test_a_judge_that_is_the_user_s_model_that_the_service_serves_shares_its_places():
    serve = {"model": "/models/small", "engine": "transformers", "http_port": 8123}
    gates = endpoints.gates(judged("openai/small", "http://127.0.0.1:8123/rollout-user/v1", user__serve=serve))
    assert gates["judge"] is gates["user"]
