"""SmolLM2, a real pretrained language model, as the user simulator that the service serves itself."""

from __future__ import annotations

from rollout_service.audit.verify import verify
from rollout_service.tau2 import tasks
from tests.support import smollm2
from tests.support.services import HTTP_PORT, start

TASK = tasks.references("telecom", "base")[13].task_id
"""Its agent first asks for `toggle_data`."""


@smollm2.needed
def test_smollm2_answers_the_agent_and_calls_the_tool_that_it_is_asked_for(cluster):
    server = {
        "model": str(smollm2.FOLDER),
        "engine": "transformers",
        "engine_arguments": {"dtype": "float32"},
        "http_port": HTTP_PORT,
        "max_new_tokens": 200,
    }
    with start(
        "smollm2-user",
        tasks__domain="telecom",
        tasks__ids=[TASK],
        user__serve=server,
        user__timeout_seconds=300.0,
        limits__max_steps=7,
    ) as service:
        (trajectory,) = service.collect(1, progress=False)
    assert trajectory.fault is None
    users = [message for message in trajectory.messages if message["role"] == "user"]
    calls = [call["name"] for message in users for call in message.get("tool_calls") or ()]
    texts = [message["content"] for message in users if not message.get("tool_calls")]
    assert calls == ["toggle_data"]
    assert all(texts), "the first words and those after the tool's result are its own"
    assert trajectory.user_usage.requests == len(users) >= 3
    assert trajectory.user_usage.failed_requests == 0
    assert [str(violation) for _, found in verify([trajectory]) for violation in found] == []
