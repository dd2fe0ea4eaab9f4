"""UserServer: the user simulator's model where the service itself serves it.

Invariant: it says the same as the policy's settings of these names, for an engine of its own.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rollout_service.config.policy import PolicyConfig
from rollout_service.config.secret_free import EngineArguments, EnvVars, TemplateArguments
from rollout_service.config.section import MOST_PROCESSES, Seconds, Section

USER_KEY_VAR = "USER_SIMULATOR_KEY"
"""Environment variable with the key of the served model. The process that starts the service makes one."""


class UserServer(Section):
    """A model that the service serves as the user simulator, in place of `user.model`."""

    model: str = Field(..., min_length=1, description="Folder or hub name of the weights.")
    engine: Literal["sglang", "transformers"] = Field(..., description="What samples.")
    replicas: int = Field(1, ge=1, le=MOST_PROCESSES, description="Number of replicas.")
    gpus_per_replica: float | None = Field(
        None,
        ge=0,
        description="GPUs that Ray reserves for a replica, such as 0.2 beside a policy that takes 0.8; null: as many "
        "as the engine's arguments need.",
    )
    cpus_per_replica: float = Field(0.0, ge=0, description="CPUs that Ray reserves for a replica.")
    engine_arguments: EngineArguments = Field(
        default_factory=dict, description="Arguments of the engine, as policy.engine_arguments."
    )
    env_vars: EnvVars = Field(
        default_factory=dict, description="Environment variables of the replicas, as policy.env_vars."
    )
    context_length: int | None = Field(
        None, ge=256, description="Most tokens of prompt and answer together; null: the model's context length."
    )
    max_new_tokens: int = Field(
        1024, ge=1, description="Most tokens of an answer, where a request (max_tokens in user.arguments) names none."
    )
    tool_parser: str = Field("auto", description="What reads tool calls, as policy.tool_parser.")
    template_arguments: TemplateArguments = Field(
        default_factory=dict, description="Arguments of the chat template, such as enable_thinking."
    )
    http_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Port on every node where Ray Serve answers; null: policy.http_port or gateway.port, else 8000.",
    )
    start_seconds: Seconds = Field(
        1800.0, description="Seconds for the replicas to start, loading of the weights included."
    )

    def as_policy(self) -> PolicyConfig:
        """The settings of an engine that serves the model."""
        return PolicyConfig(**self.model_dump(exclude={"env_vars", "http_port", "max_new_tokens"}))
