"""The official LLM user simulator, made reliable.

Invariant: a user turn is either something that a user could have said (`rollout_service.tau2.answer`) or an
`EpisodeFault` of kind `user_simulator`. If the API fails, hangs, or gives an empty, impossible or refused answer, the
request is repeated (after the time that the API asks for), and the bad answer never reaches the conversation. Importing
this module imports litellm, which takes seconds.
"""

from __future__ import annotations

import functools
import importlib.util
import uuid
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
from rollout_service.redaction import safe_cause
from rollout_service.served_user import SESSION_HEADER
from rollout_service.tau2 import answer, api_errors, compat
from rollout_service.tau2.attempts import Attempts
from rollout_service.tau2.deadline import Deadline
from rollout_service.tau2.model_calls import ModelCalls, listed_price
from rollout_service.tau2.paced import NoPlace
from rollout_service.tcp import check_listening
from rollout_service.termination import TerminationReason

_log = logs.logger(__name__)

lazy_llm_utils.load()  # so that litellm is set up, and the first episode does not wait for it

_LITELLM_ARGUMENTS: dict[str, Any] = {"num_retries": 0, "max_retries": 0}
"""Arguments of every request. Requests are repeated here and not by litellm, so that they are counted and bounded."""
if importlib.util.find_spec("litellm.responses.mcp.chat_completions_handler"):
    # Otherwise, with tools, litellm imports its MCP gateway, which needs a package that it does not install.
    _LITELLM_ARGUMENTS["_skip_mcp_handler"] = True

_FIRST_WAIT = 0.5
"""Seconds before the first repeated request. Doubles each time, with jitter, unless the API names a time."""

_SILENCES = 2
"""After so many empty answers to one tool result, the model is reminded. If it still answers nothing, that is the
fault: it rarely answers later."""

_REMINDER = "REMINDER: Your last answer was empty. Either send a message to the agent, or make a tool call."


class _Reminded(compat.UserState):  # type: ignore[misc]
    """A state with a reminder at the end, placed as τ²'s streaming user simulator places its own. It is not part of the
    conversation."""

    def flip_roles(self) -> list[Any]:
        return [*super().flip_roles(), compat.SystemMessage(role="system", content=_REMINDER)]


class ReliableUserSimulator(compat.UserSimulator):  # type: ignore[misc]
    """τ²'s own user simulator. Each of its requests is repeated until the answer is a valid message."""

    def __init__(
        self,
        task: compat.Task,
        tools: list[Any] | None,
        config: User,
        usage: UserUsage,
        deadline: Deadline,
        calls: ModelCalls | None = None,
    ) -> None:
        """
        Args:
            calls: through which the model is asked; None: without a tape.

        Raises:
            ConfigError: the key's environment variable is not set.
        """
        self._calls = calls or ModelCalls("user", deadline, usage, price=config.price)
        key = None if self._calls.asks_nobody else secret(config.api_key_var, "user.api_key_var")
        arguments = {**config.arguments, **_LITELLM_ARGUMENTS, "timeout": config.timeout_seconds}
        if config.temperature is not None:
            arguments["temperature"] = config.temperature
        if config.base_url:
            arguments["api_base"] = config.base_url
        if key or config.base_url:
            arguments["api_key"] = key or "none"  # a local endpoint needs no key, but its client library does
        if config.serve is not None:  # a conversation stays where its prefix is cached
            arguments["extra_headers"] = {SESSION_HEADER: uuid.uuid4().hex, **arguments.get("extra_headers", {})}
        super().__init__(tools=tools, instructions=str(task.user_scenario), llm=config.model, llm_args=arguments)
        self._config = config
        self._usage = usage
        self._deadline = deadline

    def generate_next_message(self, message: Any, state: Any) -> tuple[compat.UserMessage, Any]:
        """The next message of τ²'s own simulator. The request is repeated until the message is valid.

        Raises:
            EpisodeFault: the last request failed too, or one failed that would fail again, or the episode's time was
                over before it was the request's turn at the endpoint.
            EpisodeEnd: the episode's time ran out, or the episode was cancelled.
        """
        silences, attempts = 0, Attempts(self._config.retries, self._calls.gate)
        while True:
            self._deadline.remaining()
            remind = silences == _SILENCES
            try:
                return self._ask(message, state, remind=remind)
            except NoPlace:
                raise self._no_place() from None
            except (EpisodeEnd, EpisodeFault):
                raise
            except Exception as error:
                self._usage.failed_requests += 1
                self._deadline.remaining()
                problem = error
                if isinstance(error, answer.EmptyAnswer):
                    silences += isinstance(message, _TOOL_RESULTS)
                elif remind and api_errors.is_refused(error):
                    # the chat template has no place for a system message at the end
                    problem = answer.EmptyAnswer("an empty answer, and the server takes no reminder")
                attempts.failed(error)
                if attempts.are_over or api_errors.is_refused(error) or silences > _SILENCES:
                    raise self._fault(problem, attempts.made) from None  # the original's text may contain the key
                if isinstance(error, ValueError) and self._calls.was_answered and "seed" in self.llm_args:
                    self.llm_args["seed"] += 1  # with the same seed the answer may be the same
                if not attempts.is_limited:  # else the gate makes every request wait
                    self._pause(error, attempts.counted)

    def _pause(self, error: Exception, failed: int) -> None:
        """Wait before the request is repeated that failed so many times.

        Raises:
            EpisodeFault: the episode's time is over before the wait is.
            EpisodeEnd: the episode was cancelled.
        """
        wait = self._wait(error, failed - 1)
        _log.info(
            "The user simulator %s is asked again in %.1f s (request %d of %d): %s",
            self.llm,
            wait,
            failed + 1,
            self._config.retries + 1,
            first_line(error),
        )
        try:
            self._deadline.sleep(wait)
        except EpisodeEnd as end:
            if end.reason != TerminationReason.WALL_TIME:
                raise
            raise self._fault(error, failed) from None  # the time went by because the endpoint failed

    def _ask(self, message: Any, state: Any, *, remind: bool) -> tuple[compat.UserMessage, Any]:
        """Make one request. The changed state is kept only if the request succeeds."""
        kind = _Reminded if remind else type(state)
        generate = super().generate_next_message

        def request() -> tuple[compat.UserMessage, Any]:
            return generate(message, kind.model_construct(**{**dict(state), "messages": list(state.messages)}))

        reply, draft = self._calls.ask(request, self._config.timeout_seconds)
        reply.cost = self._calls.cost_usd or 0.0  # τ² has 0 for a cost that is not known
        heard = [said.content for said in draft.messages if said.role != "user" and said.content]
        text = _spoken(reply, [tool.name for tool in self.tools or ()], heard)
        if text is not None and text.strip() != reply.content.strip():
            _warn_of_thoughts(str(self.llm))
        reply.content = text
        return reply, type(state).model_construct(**dict(draft))

    def _wait(self, error: Exception, attempt: int) -> float:
        if self._calls.was_replayed:
            return 0.0
        return api_errors.wait(error, attempt, _FIRST_WAIT, self._config.max_retry_wait_seconds)

    def _fault(self, error: Exception, requests: int) -> EpisodeFault:
        text = first_line(error)[:500].rstrip(". ")
        remedy = self._remedy(error)
        return EpisodeFault(
            FaultKind.USER_SIMULATOR,
            f"{self.llm} gave no usable answer in {requests} requests; the last: {text}{remedy and f'. {remedy}'}",
            error=type(error).__name__,
            retryable=not api_errors.is_refused_always(error),
            traceback=traceback_of(error),
        )

    def _no_place(self) -> EpisodeFault:
        return EpisodeFault(
            FaultKind.USER_SIMULATOR,
            f"{self.llm}: it was not this request's turn at the endpoint before limits.wall_seconds was over. Use "
            "fewer slots (service.slots), raise limits.wall_seconds, or have the endpoint's limits raised",
            error=NoPlace.__name__,
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


def check_user(config: User) -> None:
    """Check the user simulator before any episode starts, without a request to its model.

    Raises:
        ConfigError: the model does not take this temperature.
        UserSimulatorError: nothing listens at `user.base_url`.
    """
    check_temperature(config)
    check_endpoint(config)


def check_price(section: str, model: str) -> None:
    """Check that litellm knows what the model's tokens cost.

    Args:
        section: of the settings that name the model: `user`, `user.review` or `evaluation.judge`.

    Raises:
        ConfigError: it does not, so that dollars cannot be counted.
    """
    if listed_price(model) is None:
        raise ConfigError(
            f"budget.usd is set, but litellm knows no price for {section}.model {model!r}.",
            f"Set {section}.price, or budget.user_tokens instead.",
        )


def missing_keys(model: str) -> list[str]:
    """Environment variables with a key that the model's provider needs, and that are not set. Empty also where litellm
    does not know, or where the provider knows other ways than a key."""
    try:
        found = litellm.validate_environment(model)
    except Exception:  # litellm does not know the provider; the first request will tell
        return []
    missing = found.get("missing_keys") or []
    return [] if found.get("keys_in_environment") or not all(key.endswith("_API_KEY") for key in missing) else missing


def check_temperature(config: User) -> None:
    """Check that the model takes the temperature. Some take only their own, and litellm would silently leave it out.

    Raises:
        ConfigError: `user.model` takes only its own temperature, and `user.temperature` is another.
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
    except Exception:  # litellm does not know the model or the provider; the first request will tell
        return
    if "temperature" not in sent:
        raise ConfigError(
            f"user.temperature is {wanted:g}, and {config.model} takes no temperature but its own.", _TEMPERATURE_REMEDY
        )


def check_endpoint(config: User) -> None:
    """Check that something listens at `user.base_url`, without a request.

    Raises:
        UserSimulatorError: nothing listens there.
    """
    if not config.base_url:
        return
    try:
        if "://" not in config.base_url:  # `check_listening` takes host:port too, but litellm does not
            raise ValueError("it has no scheme; write http://host:port/v1")
        check_listening(config.base_url)
    except (OSError, ValueError) as error:
        raise UserSimulatorError(
            f"user.base_url: nothing answers at {config.base_url}: {error}.",
            "Start the user simulator's server, or correct the address (it must be reachable from the cluster).",
        ) from safe_cause(error)


def _spoken(reply: compat.UserMessage, tools: list[str], heard: list[str]) -> str | None:
    """The text that the user says in this reply, see `answer.spoken`."""
    raw = compat.choice(reply)
    message = raw.get("message") or {}
    refusal = message.get("refusal") or (message.get("provider_specific_fields") or {}).get("refusal")
    native = (raw.get("provider_specific_fields") or {}).get("native_finish_reason")
    # litellm and reasoning parsers remove a thought, and leave the empty lines after it.
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
def _warn_of_thoughts(model: str) -> None:
    _log.warning(
        "%s writes its thoughts into its answers; they are removed. A reasoning parser in its server does the same.",
        model,
    )
