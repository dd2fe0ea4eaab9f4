"""RolloutConfig: every setting of the service, in one tree.

Invariant: a value comes from exactly one of four places, the stronger winning: default < YAML file < environment <
argument. An unknown key, a bad value, and a value that would have no effect beside the others are refused with the
field, the value and the remedy. The tree holds no secrets, only the *names* of the environment variables that do.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

import rollout_service.config.names as names
import rollout_service.config.variables as variables
import rollout_service.config.yaml_text as yaml_text
from rollout_service.config.budget import Budget
from rollout_service.config.evaluation import Evaluation
from rollout_service.config.gateway import Gateway, is_loopback
from rollout_service.config.limits import Limits
from rollout_service.config.policy import PolicyConfig
from rollout_service.config.refusal import Refused, check_speaks, in_words
from rollout_service.config.section import Section
from rollout_service.config.service import Service
from rollout_service.config.tape import Tape
from rollout_service.config.tasks import Tasks
from rollout_service.config.user import User


class RolloutConfig(Section):
    """All settings. `RolloutConfig()` is the embedded default: retail, scripted policy and user, no model, no key."""

    tasks: Tasks = Tasks()
    agent: Literal["llm", "solo", "gt"] = Field(
        "llm",
        description="Which of τ²'s agents the policy plays; llm: talks with a user; solo: works alone on a ticket; gt: "
        "has the gold actions in its prompt.",
    )
    policy: PolicyConfig = PolicyConfig()
    user: User = User()
    evaluation: Evaluation = Evaluation()
    tape: Tape = Tape()
    limits: Limits = Limits()
    budget: Budget = Budget()
    service: Service = Service()
    gateway: Gateway = Gateway()

    @field_validator("agent", mode="before")
    @classmethod
    def _check_agent(cls, value: Any) -> Any:
        return check_speaks(value, "agent", "llm, solo or gt")

    @model_validator(mode="after")
    def _check_solo(self) -> Self:
        if self.agent == "solo":
            why, remedy = "agent is solo, which works alone", "Leave it out (or null), or choose another agent."
            self.user.check_unset(User.model_fields, "user.", why, remedy)
        return self

    @model_validator(mode="after")
    def _check_http(self) -> Self:
        policy, gateway = self.policy, self.gateway
        if policy.http_port is None:
            return self
        if not is_loopback(policy.http_host) and not gateway.has_tokens:
            raise Refused(
                f"is {policy.http_host}, beyond the loopback address, but there are no tokens.",
                "Set gateway.tokens_file or gateway.tokens_var; `rollout-service token NAME` makes an entry.",
                "policy.http_host",
            )
        if gateway.port is not None and (policy.http_host, policy.http_port) != (gateway.host, gateway.port):
            raise Refused(
                f"is {gateway.port} at {gateway.host}, but policy.http_port is {policy.http_port} at "
                f"{policy.http_host}, and Ray Serve listens at one address.",
                "Give both the same host and port.",
                "gateway.port",
            )
        return self

    @model_validator(mode="after")
    def _check_served_user(self) -> Self:
        if self.user.serve is None:
            return self
        if self.gateway.tls_certificate is not None:
            raise Refused(
                "is set beside gateway.tls_certificate: episodes reach the model on their own node, without TLS.",
                "Leave out the certificate, or serve the model elsewhere and name it in user.base_url.",
                "user.serve",
            )
        asked, shared = self.user.serve.http_port, self.policy.http_port or self.gateway.port
        if asked is not None and shared is not None and asked != shared:
            raise Refused(
                f"is {asked}, but policy.http_port or gateway.port is {shared}, and Ray Serve listens at one address.",
                "Leave it out.",
                "user.serve.http_port",
            )
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.user_kind != "llm" and self.budget.of_user:
            why, remedy = "no language model plays the user", "Leave it out, or set user.model."
            self.budget.check_unset(self.budget.of_user, "budget.", why, remedy)
        return self

    @property
    def user_kind(self) -> Literal["dummy", "scripted", "llm"]:
        """The agent's partner in the conversation. `dummy`: nobody, because the solo agent works alone."""
        return "dummy" if self.agent == "solo" else self.user.resolved_kind

    @property
    def serves_user(self) -> bool:
        """Whether the service serves the user simulator's model, and episodes ask it."""
        return self.user.serve is not None and self.user_kind == "llm" and not self.tape.asks_nobody

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Host and port where Ray Serve answers on every node; None: nowhere."""
        if self.policy.http_port is not None:
            return self.policy.http_host, self.policy.http_port
        if self.gateway.port is not None:
            return self.gateway.host, self.gateway.port
        return ("127.0.0.1", self.user.serve.http_port or 8000) if self.user.serve is not None else None

    def explicit(self) -> dict[str, Any]:
        """The fields that were set rather than left at their default, by dotted name."""
        return dict(_explicit(self))

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        *,
        defaults: Mapping[str, Any] | None = None,
    ) -> RolloutConfig:
        """Read the settings: YAML at `path`, then the environment, then `overrides` ({"limits.max_turns": 40}).

        Args:
            environ: variables by name; None: those of this process.
            defaults: by dotted name as `overrides`, and weaker than the three.

        Raises:
            ConfigError: naming the field, the value and the remedy.
        """
        environ = os.environ if environ is None else environ
        layers: list[tuple[str, Iterable[tuple[str, Any]]]] = [("default", names.given(defaults, "defaults", cls))]
        if path is not None:
            layers.append((str(path), names.leaves(yaml_text.read_file(path), cls)))
        for variable, dotted, is_yaml in variables.settings_of(environ, field_names()):
            source, value = f"environment variable {variable}", environ[variable]
            parsed = yaml_text.parse_value(value, source) if is_yaml else value
            layers.append((source, names.leaves({dotted: parsed}, cls)))
        layers.append(("argument", names.given(overrides, "overrides", cls)))
        tree: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for source, leaves in layers:
            for dotted, value in leaves:
                names.put(tree, dotted, value)
                sources[dotted] = source
        return _built(tree, sources)

    def with_overrides(self, overrides: Mapping[str, Any]) -> RolloutConfig:
        """A copy with some fields replaced, checked again. A field at its default still counts as not set.

        Raises:
            ConfigError: naming the field, the value and the remedy.
        """
        tree = self.model_dump(exclude_unset=True)
        for dotted, value in names.given(overrides, "overrides", type(self)):
            names.put(tree, dotted, value)
        return _built(tree, {})


def field_names() -> list[str]:
    """Dotted names of every setting, in order."""
    return list(names.of_fields(RolloutConfig))


def _built(tree: Mapping[str, Any], sources: Mapping[str, str]) -> RolloutConfig:
    try:
        return RolloutConfig.model_validate(tree)
    except ValidationError as error:
        raise in_words(error, RolloutConfig, sources) from None


def _explicit(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in section.model_fields_set:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _explicit(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
