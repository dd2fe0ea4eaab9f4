"""What an episode did replays to itself, whatever its user's model wrote."""

from __future__ import annotations

import json

from rollout_service.record.trajectory import Trajectory
from rollout_service.tau2 import replay, tasks
from tests.support import episodes
from tests.support.openai_server import OpenAIServer, gold_user

TASK = tasks.references(
    "telecom",
    "base",
    ["[mobile_data_issue]bad_network_preference|bad_vpn|user_abroad_roaming_disabled_off[PERSONA:Hard]"],
)[0]


def test_a_user_s_argument_that_json_does_not_have_is_stored_as_it_was_played():
    honest = gold_user([tasks.get(TASK)])

    def brain(messages, tools):
        said = honest(messages, tools)
        for call in said.get("tool_calls", []):
            if call["function"]["name"] == "set_network_mode_preference":
                call["function"]["arguments"] = '{"mode": NaN}'
        return said

    with OpenAIServer(brain) as api:
        config = episodes.settings(user__model="openai/some-local-model", user__base_url=api.base_url)
        trajectory = episodes.runner(config).run(episodes.request(TASK))
    assert (trajectory.outcome, trajectory.fault) == ("completed", None)
    stored = Trajectory.from_dict(json.loads(json.dumps(trajectory.to_dict(), allow_nan=False)))
    [call] = [
        call
        for message in stored.messages
        for call in message.get("tool_calls") or []
        if call["name"] == "set_network_mode_preference"
    ]
    [answer] = [message for message in stored.messages if message["role"] == "tool" and message["id"] == call["id"]]
    assert call["arguments"] == {"mode": None}
    assert answer["content"].startswith("Failed to set network mode: 'None' is not a valid option.")
    assert replay.differences(stored) == []
