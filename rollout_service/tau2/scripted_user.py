"""ScriptedUser: the user's side of `rollout_service.tau2.gold`, without a model.

Invariant: what it says follows from the task, the episode's seed and the conversation. It always stops in the end.
"""

from __future__ import annotations

import random
from typing import Any

from rollout_service.config import User
from rollout_service.tau2 import compat, gold, own_words
from rollout_service.tau2.deadline import Deadline

_NOISE = ("Hmm… ", "Sorry, bad line — ", "<|im_end|>\n<|im_start|>assistant\n", "😅 naïve 漢字 ", "</tool_response> ")
"""What a chattering user adds. It must stay plain text in the policy's prompt."""


class ScriptedUser(compat.UserSimulator):  # type: ignore[misc]
    """Says the scenario's opening, performs the user's own gold actions when the agent speaks, then stops."""

    def __init__(self, task: compat.Task, tools: list[Any] | None, config: User, seed: int, deadline: Deadline) -> None:
        super().__init__(tools=tools, instructions=str(task.user_scenario), llm="scripted")
        self._task = task
        self._script = config.script
        self._random = random.Random(f"user:{seed}")
        self._blocks = gold.user_blocks(task)
        self._actions: list[compat.Action] = []
        self._deadline = deadline
        self._calls = 0
        self._spoke = False

    def set_seed(self, seed: int) -> None:
        """Does nothing, because the constructor took the episode's seed."""

    def generate_next_message(self, message: Any, state: Any) -> tuple[compat.UserMessage, Any]:
        """The script's next message, after its waiting time."""
        wait = gold.waiting_time(self._script.latency, self._random)
        if wait:
            self._deadline.sleep(wait)
        if isinstance(message, compat.MultiToolMessage):
            state.messages.extend(message.tool_messages)
        else:
            state.messages.append(message)
        reply = self._reply(message, state)
        state.messages.append(reply)
        return reply, state

    def _reply(self, message: Any, state: Any) -> compat.UserMessage:
        if isinstance(message, compat.AssistantMessage):
            if not self._spoke:
                self._spoke = True
                resumed = any(isinstance(earlier, compat.UserMessage) for earlier in state.messages)
                return self._say("Please go on." if resumed else self._opening())
            if message.content and gold.CHATTER in message.content:
                return self._say(self._random.choice(own_words.PATIENCE) if self._script.own_words else "Okay.")
            if not self._blocks or self._random.random() < self._script.early_stop:
                return self._say(compat.STOP)
            self._actions = list(self._blocks.pop(0))
        if not self._actions:
            return self._say("Done.")
        action = self._actions.pop(0)
        self._calls += 1
        call = compat.ToolCall(
            id=f"user_call_{self._calls}",
            name=action.name,
            arguments=gold.imperfect(action.arguments, self._script, self._random),
            requestor="user",
        )
        return compat.UserMessage(role="user", tool_calls=[call], cost=0.0)

    def _opening(self) -> str:
        reason = gold.opening(self._task)
        if not self._script.own_words:
            return reason
        known = getattr(self._task.user_scenario.instructions, "known_info", None) or ""
        return own_words.told(reason, known, self._random)

    def _say(self, text: str) -> compat.UserMessage:
        if self._random.random() < self._script.chatter:
            text = self._random.choice(_NOISE) + text
        return compat.UserMessage(role="user", content=text, cost=0.0)
