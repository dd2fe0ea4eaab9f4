"""Tasks whose user simulator the tests play with a model."""

from rollout_service.tau2 import tasks

RETAIL = tasks.references("retail", "base", ["0"])[0]
TELECOM = tasks.references(
    "telecom",
    "base",
    ["[mobile_data_issue]bad_network_preference|bad_vpn|user_abroad_roaming_disabled_off[PERSONA:Hard]"],
)[0]
"""The user acts twice, the agent once, the user once more: seven user turns, three of them tool calls."""
TELECOM_TURNS = 7
JUDGED = tasks.references("mock", "base", ["create_task_1_nl_eval"])[0]
