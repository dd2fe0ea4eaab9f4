"""The other side of the conversation: the scripted user, and the official LLM user simulator made reliable.

Invariant: a user turn is either a valid message or an `EpisodeFault` of kind `user_simulator`. An API that fails, hangs,
or answers with nothing, nonsense or a refusal is asked again (waiting as long as it says), and never ends up in the
conversation.
"""

from __future__ import annotations

import email.utils
import logging
import random
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any

import litellm

from rollout_service.config import User, secret
from rollout_service.errors import EpisodeEnd, EpisodeFault, FaultKind, Tau2Error, UserSimulatorError, redact
from rollout_service.tau2 import compat, gold
from rollout_service.trajectory import UserUsage

logging.getLogger("LiteLLM").setLevel(logging.CRITICAL)
litellm.suppress_debug_info = True

_FIRST_WAIT = 0.5
"""Seconds before the first repeated request; doubles with each, with jitter, unless the API names a time."""

_CONNECT_SECONDS = 5.0

_NOISE = ("Hmm… ", "Sorry, bad line — ", "<|im_end|>\n<|im_start|>assistant\n", "😅 naïve 漢字 ", "</tool_response> ")
"""What a chattering scripted user adds: text that must stay text."""


class Clock:
    """The episode's deadline and cancellation, as the user's side needs them."""

    def __init__(self, wall_seconds: float) -> None:
        self._deadline = time.monotonic() + wall_seconds
        self.cancelled = threading.Event()

    def remaining(self) -> float:
        """Seconds left.

        Raises:
            EpisodeEnd: none is left, or the episode was cancelled.
        """
        if self.cancelled.is_set():
            raise EpisodeEnd("cancelled")
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise EpisodeEnd("wall_time")
        return left

    def sleep(self, seconds: float) -> None:
        """Wait, but not beyond the deadline or a cancellation."""
        self.cancelled.wait(min(seconds, self.remaining()))
        self.remaining()


class ScriptedUser(compat.UserSimulator):  # type: ignore[misc]
    """Speaks the scenario's opening, performs the user's own gold actions when the agent speaks, then stops."""

    def __init__(self, task: compat.Task, tools: list[Any] | None, config: User, seed: int, clock: Clock) -> None:
        super().__init__(tools=tools, instructions=str(task.user_scenario), llm="scripted")
        self._task = task
        self._script = config.script
        self._random = random.Random(f"user:{seed}")
        self._blocks = gold.user_blocks(task)
        self._actions: list[compat.Action] = []
        self._clock = clock
        self._calls = 0
        self._spoke = False

    def set_seed(self, seed: int) -> None:
        """Nothing to do: the seed came with the episode."""

    def generate_next_message(self, message: Any, state: Any) -> tuple[compat.UserMessage, Any]:
        wait = gold.waiting_time(self._script.latency, self._random)
        if wait:
            self._clock.sleep(wait)
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
                return self._say("Please go on." if resumed else gold.opening(self._task))
            if message.content and gold.CHATTER in message.content:
                return self._say("Okay.")
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

    def _say(self, text: str) -> compat.UserMessage:
        if self._random.random() < self._script.chatter:
            text = self._random.choice(_NOISE) + text
        return compat.UserMessage(role="user", content=text, cost=0.0)


class ReliableUserSimulator(compat.UserSimulator):  # type: ignore[misc]
    """τ²'s own user simulator. Each of its requests is repeated until the answer is a valid message."""

    def __init__(
        self, task: compat.Task, tools: list[Any] | None, config: User, usage: UserUsage, clock: Clock
    ) -> None:
        """
        Raises:
            ConfigError: the key's environment variable is not set.
        """
        self._key = secret(config.api_key_var, "user.api_key_var")
        arguments: dict[str, Any] = {**config.arguments, "num_retries": 0, "max_retries": 0}
        if config.temperature is not None:
            arguments["temperature"] = config.temperature
        if config.base_url:
            arguments["api_base"] = config.base_url
        if self._key or config.base_url:
            arguments["api_key"] = self._key or "none"  # a local endpoint asks for no key, its client library does
        super().__init__(tools=tools, instructions=str(task.user_scenario), llm=config.model, llm_args=arguments)
        self._config = config
        self._usage = usage
        self._clock = clock
        self._random = random.Random()

    def generate_next_message(self, message: Any, state: Any) -> tuple[compat.UserMessage, Any]:
        length = len(state.messages)
        for attempt in range(self._config.retries + 1):
            self.llm_args["timeout"] = min(self._config.timeout_seconds, self._clock.remaining())
            self._usage.requests += 1
            try:
                reply, state = super().generate_next_message(message, state)
                self._account(reply)
                problem = _problem(reply)
                if problem is None:
                    return reply, state
                raise _BadAnswer(problem)
            except EpisodeEnd:
                raise
            except Exception as error:
                self._usage.failed_requests += 1
                del state.messages[length:]
                self._clock.remaining()
                if attempt == self._config.retries or not _worth_repeating(error):
                    raise self._fault(error, attempt + 1) from error
                self._clock.sleep(self._wait(error, attempt))
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, error: Exception, attempt: int) -> float:
        asked = _retry_after(error)
        wait = asked if asked is not None else _FIRST_WAIT * 2**attempt * self._random.uniform(0.5, 1.5)
        return min(wait, self._config.max_retry_wait_seconds)

    def _account(self, reply: compat.UserMessage) -> None:
        usage = reply.usage or {}
        self._usage.prompt_tokens += usage.get("prompt_tokens") or 0
        self._usage.completion_tokens += usage.get("completion_tokens") or 0
        if self._usage.cost_usd is None:
            return
        if not reply.cost and not _has_price(str(self.llm)):
            self._usage.cost_usd = None
        else:
            self._usage.cost_usd += reply.cost or 0.0

    def _fault(self, error: Exception, requests: int) -> EpisodeFault:
        secrets = [self._key] if self._key else []
        text = redact(str(error).split("\n")[0], secrets, limit=500)
        return EpisodeFault(
            FaultKind.USER_SIMULATOR,
            f"{self.llm} gave no usable answer in {requests} requests; the last: {text}",
            error=type(error).__name__,
            retryable=_worth_repeating(error),
        )


class _BadAnswer(Exception):
    """The API answered, but not with a message that a user could have sent."""


def make(
    kind: str, task: compat.Task, environment: compat.Environment, config: User, seed: int, usage: UserUsage, clock: Clock
) -> Any:
    """The user of one episode: `dummy` (solo agent), `scripted` or `llm`.

    Raises:
        ConfigError: the key's environment variable is not set.
        Tau2Error: unknown kind.
    """
    tools = compat.user_tools(environment, task)
    if kind == "dummy":
        return compat.dummy_user()
    if kind == "scripted":
        return ScriptedUser(task, tools, config, seed, clock)
    if kind == "llm":
        return ReliableUserSimulator(task, tools, config, usage, clock)
    raise Tau2Error(f"user.kind: {kind!r} is unknown.", "Choose scripted or llm.")


def check_endpoint(config: User) -> None:
    """See that something listens at `user.base_url`; nothing is asked of it, so it costs nothing.

    Raises:
        UserSimulatorError: nothing does.
    """
    if not config.base_url:
        return
    url = urllib.parse.urlsplit(config.base_url)
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserSimulatorError(
            f"user.base_url: nothing answers at {config.base_url}: {error}.",
            "Start the user simulator's server, or correct the address (it must be reachable from the cluster).",
        ) from error


def timed(user: Any, add_seconds: Callable[[float], None]) -> None:
    """Have `user` report how long each of its turns takes."""
    generate = user.generate_next_message

    def generate_next_message(message: Any, state: Any) -> Any:
        start = time.perf_counter()
        try:
            return generate(message, state)
        finally:
            add_seconds(time.perf_counter() - start)

    user.generate_next_message = generate_next_message


def _problem(reply: compat.UserMessage) -> str | None:
    """Why the answer cannot be used; None when it can."""
    raw = reply.raw_data or {}
    if raw.get("finish_reason") == "content_filter" or (raw.get("message") or {}).get("refusal"):
        return "the model refused to play the user"
    if reply.tool_calls is not None and not all(call.name for call in reply.tool_calls):
        return "a tool call without a name"
    if not reply.has_text_content() and not reply.tool_calls:
        return "an empty answer"
    return None


_HOPELESS = (
    litellm.exceptions.AuthenticationError,
    litellm.exceptions.PermissionDeniedError,
    litellm.exceptions.NotFoundError,
    litellm.exceptions.ContextWindowExceededError,
)


def _worth_repeating(error: Exception) -> bool:
    if isinstance(error, _HOPELESS):
        return False
    return not (isinstance(error, litellm.exceptions.BadRequestError) and getattr(error, "status_code", None) == 400)


def _retry_after(error: Exception) -> float | None:
    """Seconds that the API asked to wait; None when it named none."""
    response = getattr(error, "response", None)
    headers = getattr(error, "litellm_response_headers", None) or getattr(response, "headers", None) or {}
    value = headers.get("retry-after") or headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, date.timestamp() - time.time())


def _has_price(model: str) -> bool:
    try:
        info = litellm.get_model_info(model)
    except Exception:  # litellm raises a plain Exception for a model that it does not know
        return False
    return info.get("input_cost_per_token") is not None
