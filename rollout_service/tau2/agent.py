"""The policy as a τ² agent: the official agents, with the policy in place of their model call.

Invariant: prompts, tools, state and stop rules are the official agents' own. Only their one call to a language model is
replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rollout_service.chat.parsed_turn import MALFORMED_ARGUMENT, ChatMessage, ParsedTurn
from rollout_service.errors import EpisodeEnd, Tau2Error
from rollout_service.tau2 import compat, messages
from rollout_service.termination import TerminationReason

TakeTurn = Callable[[Sequence[ChatMessage]], ParsedTurn]
"""Takes the messages since the last turn and returns the policy's next turn. Blocks. Raises `EpisodeEnd` at a limit."""


class _PolicyTurns:
    """Mixed into an official agent: its turns come from `take_turn`."""

    take_turn: TakeTurn
    replies = 0
    """Number of turns that became messages."""
    _sent = 0

    def set_seed(self, seed: int) -> None:
        """Does nothing, because each call brings the seed to the policy."""

    def generate_next_message(self, message: Any, state: Any) -> tuple[compat.AssistantMessage, Any]:
        if isinstance(message, compat.MultiToolMessage):
            state.messages.extend(message.tool_messages)
        elif message is not None:
            state.messages.append(message)
        everything = [*state.system_messages, *state.messages]
        new = [chat for item in everything[self._sent :] for chat in messages.to_chat(item)]
        turn = self.take_turn(new)
        if turn.is_empty:
            raise EpisodeEnd(TerminationReason.AGENT_ERROR)
        reply = self._reply(messages.from_turn(turn, self.replies))
        self.replies += 1
        state.messages.append(reply)
        self._sent = len(everything) + 1
        return reply, state

    def _reply(self, reply: compat.AssistantMessage) -> compat.AssistantMessage:
        return reply


class PolicyAgent(_PolicyTurns, compat.LLMAgent):  # type: ignore[misc]
    """τ²'s `llm_agent`: talks with a user."""


class PolicyGTAgent(_PolicyTurns, compat.LLMGTAgent):  # type: ignore[misc]
    """τ²'s `llm_agent_gt`: has the gold actions in its prompt."""


class PolicySoloAgent(_PolicyTurns, compat.LLMSoloAgent):  # type: ignore[misc]
    """τ²'s `llm_agent_solo`: works alone on a ticket, with tool calls only. Text ends the episode as `agent_error`."""

    @classmethod
    def is_stop(cls, message: compat.AssistantMessage) -> bool:
        """Whether the message is the stop word. In a message with a call it counts as ordinary text: τ²'s
        orchestrator cannot end with a message that the environment has to answer."""
        return not message.is_tool_call() and bool(super().is_stop(message))

    def _reply(self, reply: compat.AssistantMessage) -> compat.AssistantMessage:
        return self._check_if_stop_toolcall(reply) if says_done(messages.to_record(reply)) else reply


_OFFICIAL: dict[str, Any] = {"llm": PolicyAgent, "gt": PolicyGTAgent, "solo": PolicySoloAgent}


def check_task(kind: str, task: compat.Task) -> None:
    """Check that the task can be given to this kind of agent (`llm`, `gt`, `solo`).

    Raises:
        Tau2Error: the gt agent needs gold actions, the solo agent a ticket.
    """
    if kind != "llm" and not _OFFICIAL[kind].check_valid_task(task):
        raise Tau2Error(
            f"agent: task {task.id!r} cannot be given to the {kind} agent.",
            "The gt agent needs gold actions, the solo agent a ticket; choose other tasks or agent llm.",
        )


def says_done(record: dict[str, Any]) -> bool:
    """Whether the message ends a solo episode: a well-formed call of the solo agent's stop tool."""
    stop = compat.LLMSoloAgent.STOP_FUNCTION_NAME
    calls = record.get("tool_calls") or []
    return any(call["name"] == stop and MALFORMED_ARGUMENT not in call["arguments"] for call in calls)


def make(kind: str, tools: list[Any], policy: str, task: compat.Task, take_turn: TakeTurn) -> Any:
    """The agent for one episode.

    Args:
        kind: `llm`, `gt` or `solo`.
        policy: the domain's policy text, which τ² puts into the prompt.

    Raises:
        Tau2Error: the task cannot be given to this kind of agent.
    """
    check_task(kind, task)
    own = {} if kind == "llm" else {"task": task}
    agent: Any = _OFFICIAL[kind](tools=tools, domain_policy=policy, llm="policy", **own)
    agent.take_turn = take_turn
    return agent
