"""Real requests over HTTP that wait for their turn: many users, one gate, a server that has limits."""

from __future__ import annotations

import threading

from rollout_service.config import User
from rollout_service.pacing.gate import Gate
from rollout_service.record.trajectory import UserUsage
from rollout_service.tau2 import compat, tasks, users
from rollout_service.tau2.deadline import Deadline
from rollout_service.tau2.model_calls import ModelCalls
from tests.support import openai_server as server
from tests.support.openai_server import OpenAIServer, Request

QUOTA, WINDOW = 6, 0.5


def test_no_request_is_lost_to_a_limit_of_requests_per_window_though_none_may_fail_twice() -> None:
    used: dict[int, int] = {}

    def limited(request: Request) -> server.Behaviour:
        window = int(request.arrived / WINDOW)
        used[window] = used.get(window, 0) + 1
        left = (window + 1) * WINDOW - request.arrived
        return server.ok if used[window] <= QUOTA else server.rate_limited(round(left + 0.01, 2))

    task = tasks.get(tasks.references("mock", "base")[0])
    greeting = compat.AssistantMessage(role="assistant", content="Hi! How can I help you today?")
    gate, usages, answers = Gate(64, 60.0, 600.0), [UserUsage() for _ in range(12)], []

    def speak(usage: UserUsage) -> None:
        deadline = Deadline(120.0)
        config = User(model="openai/some-model", base_url=api.base_url, retries=0)
        user = users.make(
            "llm", task, None, config, 0, usage, deadline, lambda: ModelCalls("user", deadline, usage, gate=gate)
        )
        answers.extend(user.generate_next_message(greeting, user.get_init_state())[0] for _ in range(3))

    with OpenAIServer(server.talker(9), limited) as api:
        threads = [threading.Thread(target=speak, args=(usage,), daemon=True) for usage in usages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    refused = sum(usage.failed_requests for usage in usages)
    assert len(answers) == 36
    assert len(api.requests) == 36 + refused
