"""PolicyConfig: the policy, how it is served and how it samples.

Invariant: the engine has what it needs to serve, and every setting beside it has an effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rollout_service.config.calendar_date import CalendarDate
from rollout_service.config.refusal import Refused
from rollout_service.config.sampling import Sampling
from rollout_service.config.script import Script
from rollout_service.config.secret_free import EngineArguments, EnvVars, TemplateArguments, Url, VariableName
from rollout_service.config.section import MOST_PROCESSES, Pause, Seconds, Section


@dataclass(frozen=True)
class _For:
    """The engines that use a setting. Beside another engine it would have no effect, so it is refused."""

    engines: tuple[str, ...]


_REPLICAS = _For(("scripted", "sglang", "transformers"))
"""For engines that run in replicas of the service's own."""

_MODELS = _For(("sglang", "transformers"))


class Autoscaling(Section):
    """How the number of policy replicas follows the turns in flight."""

    min_replicas: int = Field(1, ge=1, description="Fewest replicas.")
    max_replicas: int = Field(..., ge=1, le=MOST_PROCESSES, description="Most replicas.")
    target_ongoing_requests: float = Field(64.0, gt=0, description="Turns in flight that one replica should have.")
    upscale_delay_seconds: Pause = Field(30.0, description="Seconds of high load before a replica is added.")
    downscale_delay_seconds: Pause = Field(
        600.0, description="Seconds of low load before a replica is removed, which loses its prefix cache."
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise Refused(
                f"is {self.max_replicas}, below min_replicas, which is {self.min_replicas}.",
                "Raise max_replicas, or lower min_replicas.",
                "policy.autoscaling.max_replicas",
            )
        return self


class PolicyConfig(Section):
    """The policy: what samples turns, and how its text becomes tokens."""

    engine: Literal["scripted", "sglang", "transformers", "http"] = Field(
        "scripted",
        description="scripted: plays the task's gold actions without a model; sglang, transformers: serve policy.model;"
        " http: any SGLang-compatible endpoint at policy.url.",
    )
    model: str | None = Field(
        None, min_length=1, description="Folder or hub name of the weights; for http: of the model that url serves."
    )
    url: Annotated[Url | None, _For(("http",))] = Field(
        None, description="URL of the endpoint, for http: a server, or the router in front of several."
    )
    tokenizer: str | None = Field(
        None,
        description="Folder or hub name of the tokenizer; null: the model's, or without a model the small tokenizer "
        "that ships with this package.",
    )
    tool_parser: str = Field(
        "auto",
        description="What reads tool calls. auto: found by trying; learned: the format that the chat template writes; "
        "harmony: gpt-oss's; or the name of a parser of the `renderers` package.",
    )
    template_arguments: TemplateArguments = Field(
        default_factory=dict,
        description="Arguments of the chat template, such as enable_thinking, preserve_thinking or reasoning_effort.",
    )
    date: CalendarDate | None = Field(
        None,
        description="Date that the chat template writes where it asks for today's, such as 2026-01-31; null: that of "
        "the start. Refused where the template writes none.",
    )
    accepted_losses: tuple[Literal["tools", "text_beside_calls"], ...] = Field(
        (),
        description="What the chat template may leave out of prompts. tools: the tools themselves; text_beside_calls: "
        "with history template, what the policy said beside its calls. Without it, such a template is refused.",
    )
    admission: Annotated[Literal["cache", "slots"], _For(("sglang",))] = Field(
        "cache",
        description="What an episode waits for before it starts. cache: a free slot, and room in the replicas' memory "
        "for keys and values, if evicted prefixes would cost more time than larger batches save; slots: a free slot. "
        "With autoscaling it is always slots.",
    )
    weight_staging: Annotated[Literal["auto", "host"], _For(("sglang",))] = Field(
        "auto",
        description="Where new weights wait until the turns stop. auto: in free memory of the replica's GPU, if it has "
        "one only and they fit with 2 GiB to spare, so that turns stand still for less time, else as host; host: "
        "tensors in shared memory, checkpoints in their files.",
    )
    history: Literal["append", "template"] = Field(
        "append",
        description="append: keep the tokens that the engine saw; template: follow a chat template that rewrites "
        "history.",
    )
    context_length: int | None = Field(
        None,
        ge=256,
        description="Most tokens of prompt and turn together; null: the model's context length, which an endpoint is "
        "asked for.",
    )
    response_length: int | None = Field(
        None, ge=1, description="Most tokens of an episode after its first prompt; null: as many as the context takes."
    )
    sampling: Sampling = Sampling()
    timeout_seconds: Seconds = Field(600.0, description="Seconds for one turn.")
    retry_seconds: Pause = Field(
        120.0, description="Seconds during which a turn is retried while its replica or endpoint is unavailable."
    )
    engine_arguments: Annotated[EngineArguments, _MODELS] = Field(
        default_factory=dict,
        description="Arguments of the engine; for sglang: fields of its ServerArgs; for transformers: of "
        "from_pretrained.",
    )
    env_vars: Annotated[EnvVars, _REPLICAS] = Field(
        default_factory=dict, description="Environment variables of the replicas. Ray logs them, so no secrets."
    )
    env_vars_from: Annotated[list[VariableName], _REPLICAS] = Field(
        default_factory=list,
        description="NAMES of environment variables that are copied to the replicas from where the service is started, "
        "such as HF_TOKEN. One that is not set there must be set on the replicas' nodes.",
    )
    replicas: Annotated[int, _REPLICAS] = Field(1, ge=1, le=MOST_PROCESSES, description="Number of policy replicas.")
    autoscaling: Annotated[Autoscaling | None, _REPLICAS] = Field(
        None, description="Settings of autoscaling, in place of a fixed number of replicas; null: no autoscaling."
    )
    gpus_per_replica: Annotated[float | None, _REPLICAS] = Field(
        None, ge=0, description="GPUs that Ray reserves for a replica; null: as many as the engine's arguments need."
    )
    cpus_per_replica: Annotated[float, _REPLICAS] = Field(
        0.0, ge=0, description="CPUs that Ray reserves for a replica; torch uses as many threads there, at least one."
    )
    max_ongoing_requests: Annotated[int, _REPLICAS] = Field(
        1024, ge=1, description="Most turns that one replica's engine is given at a time; further turns wait."
    )
    start_seconds: Annotated[Seconds, _REPLICAS] = Field(
        1800.0, description="Seconds for the replicas to start, loading of the weights included."
    )
    weight_version: int = Field(0, ge=0, lt=2**31, description="Weight version of the weights in policy.model.")
    application: Annotated[str | None, _REPLICAS] = Field(
        None,
        description="Name of a running Serve application, made by deploy.policy:app; null: the service starts its own.",
    )
    http_port: Annotated[int | None, _REPLICAS] = Field(
        None,
        ge=0,
        le=65535,
        description="Port on which every node also serves SGLang's /generate over HTTP; null: none.",
    )
    http_host: Annotated[str, _REPLICAS] = Field(
        "127.0.0.1",
        min_length=1,
        description="Address where http_port listens on each node; 0.0.0.0: every address, which needs the gateway's "
        "tokens.",
    )
    http_body_bytes: Annotated[int, _REPLICAS] = Field(
        4 << 20, ge=1024, le=1 << 30, description="Most bytes of one HTTP request; a larger one is answered with 413."
    )
    http_body_seconds: Annotated[Seconds, _REPLICAS] = Field(
        30.0, description="Seconds in which the body of an HTTP request must arrive; a later one is answered with 408."
    )
    http_prompts: Annotated[int, _REPLICAS] = Field(
        256, ge=1, description="Most prompts of one HTTP request; one with more is answered with 400."
    )
    script: Annotated[Script, _For(("scripted",))] = Script()

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.engine == "scripted" and self.model is not None:
            raise Refused(
                "is set, but policy.engine is scripted, which plays the tasks' gold actions and no model.",
                "Set policy.engine to sglang or transformers to serve the model, or to http if policy.url serves it.",
                "policy.model",
            )
        if self.engine in ("sglang", "transformers") and not self.model:
            raise Refused(
                f"is {self.engine} but policy.model is not set.", "Name a folder or a hub name there.", "policy.engine"
            )
        if self.engine == "http" and not (self.url and self.tokenizer):
            missing = "policy.tokenizer" if self.url else "policy.url"
            raise Refused(
                f"is http, but {missing} is not set.", "Set policy.url and policy.tokenizer.", "policy.engine"
            )
        return self

    @model_validator(mode="after")
    def _check_effects(self) -> Self:
        for name, info in type(self).model_fields.items():
            for use in info.metadata:
                if isinstance(use, _For) and self.engine not in use.engines:
                    why, others = f"policy.engine is {self.engine}", " or ".join(use.engines)
                    self.check_unset({name}, "policy.", why, f"Leave it out, or set policy.engine to {others}.")
        if self.autoscaling is not None:
            why = "policy.autoscaling says how many replicas there are"
            self.check_unset({"replicas"}, "policy.", why, "Leave out one of them.")
        if self.http_port is None:
            self.check_unset({"http_host"}, "policy.", "policy.http_port is not set", "Set that too, or leave it out.")
        return self

    @property
    def serves(self) -> str:
        """The model's name, or `scripted` where no model samples."""
        return self.model or self.engine

    @property
    def tokenizer_name(self) -> str | None:
        """Folder or hub name of the tokenizer; None: the one that ships with this package."""
        return self.tokenizer or self.model
