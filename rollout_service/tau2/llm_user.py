"""The official LLM user simulator, made reliable.

Invariant: a user turn is either what a user could have said (`rollout_service.tau2.answer`) or an `EpisodeFault` of
kind `user_simulator`. An API that fails, hangs, or answers with nothing, nonsense or a refusal is asked again (waiting
as long as it says), and what it said never ends up in the conversation. Importing this module imports litellm, which
takes seconds.
"""

from __future__ import annotations

import functools
import importlib.util
import random
from typing import Any

import litellm

import rollout_service.logs as logs
import rollout_service.tau2.lazy_llm_utils as lazy_llm_utils
from rollout_service.config import User
from rollout_service.config.secrets import secret
from rollout_service.errors import (
    ConfigError,
    EpisodeEnd,
    EpisodeFault,
    FaultKind,
    UserSimulatorError,
    first_line,
    traceback_of,
)
from rollout_service.record.trajectory import UserUsage
from rollout_service.redaction import redact, safe_cause
from rollout_service.tau2 import answer, api_errors, compat
from rollout_service.tau2.deadline import Deadline
from rollout_service.tcp import check_listening

_log = logs.logger(__name__)

lazy_llm_utils.load()  # the first episode need not wait for it, and litellm is set up

_LITELLM_ARGUMENTS: dict[str, Any] = {"num_retries": 0, "max_retries": 0}
"""Given with every request. The repeating is done here, where it is counted and bounded."""
if importlib.util.find_spec("litellm.responses.mcp.chat_completions_handler"):
    # With tools litellm otherwise imports its MCP gateway first, which needs a package that it does not install.
    _LITELLM_ARGUMENTS["_skip_mcp_handler"] = True

_FIRST_WAIT = 0.5
"""Seconds before the first repeated request; doubles with each, with jitter, unless the API names a time."""

_SILENCES = 2
"""Empty answers to one tool's result until the model is reminded. A model that has nothing to say there rarely has it
later: the next empty answer is the fault."""

_REMINDER = "REMINDER: Your last answer was empty. Either send a message to the agent, or make a tool call."


class _Reminded(compat.UserState):  # type: ignore[misc]
    """A state with a reminder at the end, as τ²'s streaming user simulator places its own: nobody in the conversation
    said it."""

    def flip_roles(self) -> list[Any]:
        return [*super().flip_roles(), compat.SystemMessage(role="system", content=_REMINDER)]


class ReliableUserSimulator(compat.UserSimulator):  # type: ignore[misc]
    """τ²'s own user simulator. Each of its requests is repeated until the answer is a valid message."""

    def __init__(
        self, task: compat.Task, tools: list[Any] | None, config: User, usage: UserUsage, clock: Deadline
    ) -> None:
        """
        Raises:
            ConfigError: the key's environment variable is not set.
        """
        key = secret(config.api_key_var, "user.api_key_var")
        arguments = {**config.arguments, **_LITELLM_ARGUMENTS, "timeout": config.timeout_seconds}
        if config.temperature is not None:
            arguments["temperature"] = config.temperature
        if config.base_url:
            arguments["api_base"] = config.base_url
        if key or config.base_url:
            arguments["api_key"] = key or "none"  # a local endpoint asks for no key, its client library does
        super().__init__(tools=tools, instructions=str(task.user_scenario), llm=config.model, llm_args=arguments)
        self._config = config
        self._usage = usage
        self._clock = clock
        self._random = random.Random()

    def generate_next_message(self, message: Any, state: Any) -> tuple[compat.UserMessage, Any]:
        """τ²'s own next message, asked for until it is valid.

        Raises:
            EpisodeFault: the last of the requests failed too, or one failed that is bound to fail again.
            EpisodeEnd: the episode's time ran out, or the episode was cancelled.
        """
        silences = 0
        for attempt in range(self._config.retries + 1):
            self._clock.remaining()
            self._usage.requests += 1
            remind = silences == _SILENCES
            try:
                return self._ask(message, state, remind=remind)
            except EpisodeEnd:
                raise
            except Exception as error:
                self._usage.failed_requests += 1
                self._clock.remaining()
                problem = error
                if isinstance(error, answer.EmptyAnswer):
                    silences += isinstance(message, _TOOL_RESULTS)
                elif remind and api_errors.is_refused(error):
                    # a chat template with no place for a system message at the end
                    problem = answer.EmptyAnswer("an empty answer, and the server takes no reminder")
                if attempt == self._config.retries or api_errors.is_refused(error) or silences > _SILENCES:
                    raise self._fault(problem, attempt + 1) from None  # the original's text may hold the key
                if isinstance(error, ValueError) and "seed" in self.llm_args:
                    self.llm_args["seed"] += 1  # the same question with the same seed may get the same bad answer
                wait = self._wait(error, attempt)
                _log.info(
                    "The user simulator %s is asked again in %.1f s (request %d of %d): %s",
                    self.llm,
                    wait,
                    attempt + 2,
                    self._config.retries + 1,
                    first_line(error),
                )
                self._clock.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _ask(self, message: Any, state: Any, *, remind: bool) -> tuple[compat.UserMessage, Any]:
        """One request. What it makes of the state is kept only when it succeeds."""
        kind = _Reminded if remind else type(state)
        draft = kind.model_construct(**{**dict(state), "messages": list(state.messages)})
        request = functools.partial(super().generate_next_message, message, draft)
        reply, draft = self._clock.bound(request, self._config.timeout_seconds)
        self._account(reply)
        heard = [said.content for said in draft.messages if said.role != "user" and said.content]
        text = _spoken(reply, [tool.name for tool in self.tools or ()], heard)
        if text is not None and text.strip() != reply.content.strip():
            _say_that_thoughts_come(str(self.llm))
        reply.content = text
        return reply, type(state).model_construct(**dict(draft))

    def _wait(self, error: Exception, attempt: int) -> float:
        asked = api_errors.retry_after(error)
        if asked is not None:
            wait = asked + _FIRST_WAIT * self._random.random()  # spread, lest all return at the same moment
        else:
            wait = _FIRST_WAIT * 2 ** min(attempt, 16) * self._random.uniform(0.5, 1.5)
        return min(wait, self._config.max_retry_wait_seconds)

    def _account(self, reply: compat.UserMessage) -> None:
        usage = reply.usage or {}
        self._usage.prompt_tokens += usage.get("prompt_tokens") or 0
        self._usage.completion_tokens += usage.get("completion_tokens") or 0
        if self._usage.cost_usd is None:
            return
        if not reply.cost and _price(str(self.llm)) != 0:  # τ² gives 0 for what litellm cannot price, too
            self._usage.cost_usd = None
        else:
            self._usage.cost_usd += reply.cost or 0.0

    def _fault(self, error: Exception, requests: int) -> EpisodeFault:
        text = redact(str(error)).split("\n")[0][:500].rstrip(". ")
        remedy = self._remedy(error)
        return EpisodeFault(
            FaultKind.USER_SIMULATOR,
            f"{self.llm} gave no usable answer in {requests} requests; the last: {text}{remedy and f'. {remedy}'}",
            error=type(error).__name__,
            retryable=not api_errors.is_refused_always(error),
            traceback=traceback_of(error),
        )

    def _remedy(self, error: Exception) -> str:
        if isinstance(error, answer.ImpossibleAnswer):
            return error.remedy
        if (
            api_errors.is_refused(error)
            and "temperature" in str(error).lower()
            and self._config.temperature is not None
        ):
            return _TEMPERATURE_REMEDY
        return ""


def check(config: User) -> None:
    """See what can be seen of the user simulator before an episode starts; nothing is asked of its model.

    Raises:
        ConfigError: the model takes no such temperature.
        UserSimulatorError: nothing listens at `user.base_url`.
    """
    check_temperature(config)
    check_endpoint(config)


def check_temperature(config: User) -> None:
    """litellm knows models that take no temperature but their own, and would leave the setting out without a word.

    Raises:
        ConfigError: `user.model` is one of them, and `user.temperature` another.
    """
    wanted = config.temperature
    if wanted is None or not config.model:
        return
    effort = {name: config.arguments[name] for name in ("reasoning_effort",) if name in config.arguments}
    try:
        model, provider, _, _ = litellm.get_llm_provider(config.model, api_base=config.base_url)
        sent = litellm.get_optional_params(model=model, custom_llm_provider=provider, temperature=wanted, **effort)
    except litellm.exceptions.UnsupportedParamsError:
        sent = {}
    except Exception:  # a model or a provider that litellm does not know: the first request tells
        return
    if "temperature" not in sent:
        raise ConfigError(
            f"user.temperature is {wanted:g}, and {config.model} takes no temperature but its own.", _TEMPERATURE_REMEDY
        )


def check_endpoint(config: User) -> None:
    """See that something listens at `user.base_url`; nothing is asked of it, so it costs nothing.

    Raises:
        UserSimulatorError: nothing does.
    """
    if not config.base_url:
        return
    try:
        check_listening(config.base_url)
    except (OSError, ValueError) as error:
        raise UserSimulatorError(
            f"user.base_url: nothing answers at {config.base_url}: {error}.",
            "Start the user simulator's server, or correct the address (it must be reachable from the cluster).",
        ) from safe_cause(error)


def _spoken(reply: compat.UserMessage, tools: list[str], heard: list[str]) -> str | None:
    """What the user says with this reply, see `answer.spoken`."""
    raw = reply.raw_data or {}
    message = raw.get("message") or {}
    refusal = message.get("refusal") or (message.get("provider_specific_fields") or {}).get("refusal")
    native = (raw.get("provider_specific_fields") or {}).get("native_finish_reason")
    # litellm and reasoning parsers take a thought off, and leave the empty lines after it.
    thought = message.get("reasoning_content")
    return answer.spoken(
        reply.content.lstrip() if thought and reply.content else reply.content,
        [call.name for call in reply.tool_calls or ()],
        finish_reasons=(raw.get("finish_reason"), native),
        refused=bool(refusal),
        tools=tools,
        heard=heard,
    )


_TOOL_RESULTS = (compat.ToolMessage, compat.MultiToolMessage)

_TEMPERATURE_REMEDY = "Set user.temperature: null, which leaves the temperature to the provider."


@functools.cache
def _say_that_thoughts_come(model: str) -> None:
    _log.warning(
        "%s writes its thoughts into its answers; they are taken off. A reasoning parser in its server does the same.",
        model,
    )


def _price(model: str) -> float | None:
    """US dollars per prompt token; None when it is not known."""
    try:
        price = litellm.get_model_info(model).get("input_cost_per_token")
    except Exception:  # litellm raises a plain Exception for a model that it does not know
        return None
    return None if price is None else float(price)
