"""ModelCalls: how an episode asks a language model, be it the user simulator's, the judge's or the reviewer's.

Invariant: each answer is counted once, also one that turns out to be unusable, and with a tape each is recorded or
replayed once. An answer that came after its request was given up is neither. τ²'s own code builds the request and reads
the answer; only the one call of litellm in it is watched.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, TypeVar

import rollout_service.tau2.lazy_llm_utils as lazy_llm_utils
from rollout_service.config.price import Price
from rollout_service.errors import EpisodeEnd, EpisodeFault, FaultKind
from rollout_service.pacing.gate import Gate
from rollout_service.record.trajectory import UserUsage
from rollout_service.redaction import redact
from rollout_service.tape.episode import EpisodeTape
from rollout_service.tape.recording import Entry
from rollout_service.tape.request import ModelRequest
from rollout_service.tau2 import paced
from rollout_service.tau2.deadline import Deadline

T = TypeVar("T")


@dataclass(slots=True)
class _Answer:
    """One answer, as it is counted and recorded."""

    entry: Entry
    is_replayed: bool = False


class ModelCalls:
    """The requests of one episode to one model."""

    def __init__(
        self,
        asked: str,
        deadline: Deadline,
        usage: UserUsage,
        *,
        price: Price | None = None,
        tape: EpisodeTape | None = None,
        replayed_latency: bool = False,
        gate: Gate | None = None,
    ) -> None:
        """
        Args:
            asked: `user`, `judge` or `review`.
            usage: what is consumed is added to it.
            price: goes before litellm's.
            replayed_latency: whether a replayed answer takes as long as when it was recorded.
            gate: where requests wait for their turn; None: they need not.
        """
        setattr(lazy_llm_utils.load(), "completion", _completion)  # noqa: B010  (its type has no such attribute)
        self._asked = asked
        self._deadline = deadline
        self._usage = usage
        self._price = price or Price()
        self._tape = tape
        self._replayed_latency = replayed_latency
        self.gate = None if self.asks_nobody else gate
        """Where the requests wait for their turn; None: they need not."""
        self._unanswered = 0
        """Requests without an answer since the last one."""
        self.was_answered = False
        """Whether the last request brought an answer, usable or not."""
        self.was_replayed = False
        """Whether that came from the tape."""
        self.cost_usd: float | None = None
        """What it cost, in US dollars; None: not known."""

    @property
    def asks_nobody(self) -> bool:
        """Whether every answer comes from the tape."""
        return self._tape is not None and self._tape.asks_nobody

    def ask(self, request: Callable[[], T], seconds: float) -> T:
        """Run `request`, in which τ² asks the model, and return its result. It may run twice: a request that the tape
        answers takes no place at the gate, and only a run tells whether it does.

        Raises:
            TimeoutError: it took longer than `seconds`.
            EpisodeEnd: the episode's time ran out first, or the episode was cancelled.
            EpisodeFault: the tape has no answer, or cannot be written.
        """
        self._usage.requests += 1
        self.was_answered = self.was_replayed = False
        self.cost_usd = None
        if self.gate is not None and self._tape is not None and self._tape.may_answer:
            with contextlib.suppress(_NotRecorded):
                return self._run(request, seconds, None, _Call(self._asked, self._price, self._tape, asks=False))
        return self._run(request, seconds, self.gate, _Call(self._asked, self._price, self._tape))

    def _run(self, request: Callable[[], T], seconds: float, gate: Gate | None, call: _Call) -> T:
        def run() -> T:
            _current.set(call)
            return request()

        try:
            result = paced.ask(gate, self._deadline, run, seconds)
        except _NotRecorded:
            raise
        except (TimeoutError, EpisodeEnd):
            self._unanswered += 1
            raise
        except Exception:
            self._settle(call.answers)
            raise
        self._settle(call.answers or [self._unwatched(result)])
        return result

    def _unwatched(self, result: Any) -> _Answer:
        """The answer in a result of τ²'s code that came by another way than `litellm.completion`, as upstream's does
        for models whose prompts it formats itself (`hosted_vllm/…`).

        Raises:
            EpisodeFault: there is a tape, which such an answer passes by.
        """
        if self._tape is not None:
            text = "τ² asks this model by a way that the tape does not see. Use another prefix of its name, as openai/…"
            raise EpisodeFault(FaultKind.SERVICE, text, error="NotOnTape", retryable=False)
        reply = result[0] if isinstance(result, tuple) else result
        used = reply.usage or {}
        prompt, completion = used.get("prompt_tokens") or 0, used.get("completion_tokens") or 0
        cost = self._price.of(prompt, completion)
        request = ModelRequest("", {}, None, [])
        return _Answer(
            Entry(self._asked, "", request, {}, 0, prompt, completion, reply.cost or None if cost is None else cost)
        )

    def _settle(self, answers: list[_Answer]) -> None:
        if not answers:
            self._unanswered += 1
            return
        self.was_answered = True
        for answer in answers:
            entry = answer.entry
            self._count(entry)
            if answer.is_replayed:
                self._usage.requests += entry.unanswered
                self._usage.failed_requests += entry.unanswered
            else:
                entry = replace(entry, unanswered=self._unanswered)
            self._unanswered = 0
            if self._tape is not None:
                self._tape.note(entry, is_replayed=answer.is_replayed)
        self.was_replayed = all(answer.is_replayed for answer in answers)
        if self._replayed_latency:
            self._deadline.sleep(sum(answer.entry.seconds for answer in answers if answer.is_replayed))

    def _count(self, entry: Entry) -> None:
        usage = self._usage
        usage.prompt_tokens += entry.prompt_tokens
        usage.completion_tokens += entry.completion_tokens
        self.cost_usd = entry.cost_usd
        if entry.cost_usd is None or usage.cost_usd is None:
            usage.cost_usd = None
        else:
            usage.cost_usd += entry.cost_usd


class _NotRecorded(Exception):
    """The tape lacks the answer, and nobody was asked."""


class _Call:
    """One run of τ²'s code that asks the model, usually once."""

    def __init__(self, asked: str, price: Price, tape: EpisodeTape | None, *, asks: bool = True) -> None:
        """
        Args:
            asks: whether the model is asked for what the tape lacks. Otherwise `_NotRecorded` is raised.
        """
        self._asked, self._price, self._tape, self._asks = asked, price, tape, asks
        self.answers: list[_Answer] = []

    def complete(self, arguments: dict[str, Any]) -> Any:
        """The model's answer as litellm gives it, from the tape or from the API."""
        import litellm

        key, request = "", ModelRequest.of(**arguments)
        if self._tape is not None:
            key = request.key
            more = sum(answer.entry.key == key for answer in self.answers)
            recorded = self._tape.find(self._asked, request, key, more)
            if recorded is not None:
                self.answers.append(_Answer(recorded, is_replayed=True))
                return litellm.ModelResponse(**recorded.answer)
            if not self._asks:
                raise _NotRecorded
            request = copy.deepcopy(request)  # litellm changes the tools in place for some providers
        begun = perf_counter()
        response = litellm.completion(**_lighter(arguments))
        seconds = perf_counter() - begun
        prompt, completion, cost = _spent(response, request.model, self._price)
        answer: dict[str, Any] = {}
        if self._tape is not None:
            answer = _without_secrets(response.model_dump(mode="json", exclude_none=True))
            response = litellm.ModelResponse(**answer)  # the conversation goes on with what a replay will have
        entry = Entry(self._asked, key, request, answer, 0, prompt, completion, cost, seconds)
        self.answers.append(_Answer(entry))
        return response


_IN_BODY = ("tools", "tool_choice")


def _lighter(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same request to an OpenAI-compatible endpoint, for a quarter less CPU time. OpenAI's client walks through the
    schemas of all tools for each request, and puts what stands in `extra_body` into the request as it is."""
    is_compatible = arguments.get("api_base") is not None and str(arguments["model"]).startswith("openai/")
    if not is_compatible or not arguments.get("tools"):
        return arguments
    moved = {name: arguments[name] for name in _IN_BODY if arguments.get(name) is not None}
    rest = {name: value for name, value in arguments.items() if name not in _IN_BODY}
    return {**rest, "extra_body": {**moved, **(rest.get("extra_body") or {})}}


_current: ContextVar[_Call | None] = ContextVar("call", default=None)


def _completion(**arguments: Any) -> Any:
    """Stands in τ²'s module in the place of `litellm.completion`."""
    import litellm

    call = _current.get()
    return litellm.completion(**arguments) if call is None else call.complete(arguments)


def listed_price(model: str) -> float | None:
    """US dollars per prompt token in litellm's price list. None: the model is not in it."""
    import litellm

    try:
        price = litellm.get_model_info(model).get("input_cost_per_token")
    except Exception:  # litellm raises a plain Exception for an unknown model
        return None
    return None if price is None else float(price)


def _spent(response: Any, model: str, price: Price) -> tuple[int, int, float | None]:
    """Prompt tokens, completion tokens and US dollars of an answer. None: the cost is not known."""
    llm_utils = lazy_llm_utils.load()
    usage = llm_utils.get_response_usage(response) or {}
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cost = price.of(prompt, completion)
    if cost is None:
        cost = llm_utils.get_response_cost(response)
        if not cost and listed_price(model) != 0:  # τ² also says 0 if litellm has no price
            cost = None
    return prompt, completion, cost


def _without_secrets(value: Any) -> Any:
    """The JSON value with every secret in its texts replaced."""
    if isinstance(value, dict):
        return {name: _without_secrets(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return redact(value) if isinstance(value, str) else value
