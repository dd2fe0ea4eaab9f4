"""RolloutConfig: every setting of the service, in one tree.

Invariant: a value comes from exactly one of four places, the stronger winning: default < YAML file < environment <
argument. An unknown key or a bad value is refused with the field, the value and the remedy; secrets never stand in the
tree, only the *names* of the environment variables that hold them.

Environment variables: `ROLLOUT_SECTION__FIELD` sets `section.field` (`ROLLOUT_LIMITS__MAX_TURNS=40`), and the names
that τ²-bench users know are honoured, see `TAU2_VARIABLES`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rollout_service.errors import ConfigError
from rollout_service.policy.base import Sampling

TAU2_VARIABLES = {
    "TAU2_DOMAIN": "tasks.domain",
    "TAU2_TASK_SPLIT": "tasks.split",
    "TAU2_USER_MODEL": "user.model",
    "TAU2_USER_BASE_URL": "user.base_url",
    "TAU2_USER_API_KEY_VAR": "user.api_key_var",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tasks(_Section):
    """Which τ²-bench tasks a collection draws when the call does not say."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    domain: str | dict[str, float] = Field("retail", description="a domain, or a mix {domain: weight}")
    split: str = Field("base", description="train, test, base; telecom also has small and full")
    ids: list[str] | None = Field(None, description="only these task ids, of one domain; null: the whole split")
    shuffle: bool = Field(True, description="a new order each epoch; false: the order of the split, over and over")
    seed: int = Field(0, description="of the order and of every episode drawn")

    @model_validator(mode="after")
    def _mix_is_positive(self) -> Self:
        if isinstance(self.domain, dict):
            if not self.domain or any(weight <= 0 for weight in self.domain.values()):
                raise ValueError("a mix needs at least one domain, and weights above 0")
            if self.ids is not None and len(self.domain) > 1:
                raise ValueError("tasks.ids goes with one domain, not with a mix")
        return self

    @property
    def domains(self) -> list[str]:
        """The domain, or those of the mix."""
        return [self.domain] if isinstance(self.domain, str) else list(self.domain)


class Latency(_Section):
    """How long each turn of the scripted policy or user takes, in seconds."""

    distribution: Literal["constant", "uniform", "exponential"] = "constant"
    mean: float = Field(0.0, ge=0.0)
    spread: float = Field(0.0, ge=0.0, description="half the width of the uniform distribution")


class Script(_Section):
    """How a scripted side misbehaves on purpose. Each probability is drawn per action, from the episode's seed."""

    wrong_argument: float = Field(0.0, ge=0.0, le=1.0, description="alters one argument of the action")
    malformed_call: float = Field(0.0, ge=0.0, le=1.0, description="the policy first writes the call as broken JSON")
    early_stop: float = Field(0.0, ge=0.0, le=1.0, description="leaves out this action and all that follow")
    chatter: float = Field(0.0, ge=0.0, le=1.0, description="the policy says something idle first; the user adds noise")
    calls_per_turn: int = Field(1, ge=1, description="the policy's consecutive actions that share a turn")
    latency: Latency = Latency()


class Autoscaling(_Section):
    """How the number of policy replicas follows the turns in flight."""

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(..., ge=1)
    target_ongoing_requests: float = Field(64.0, gt=0, description="turns in flight that one replica should have")
    upscale_delay_seconds: float = Field(30.0, ge=0)
    downscale_delay_seconds: float = Field(600.0, ge=0, description="a replica that goes takes its prefix cache along")

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("policy.autoscaling.max_replicas is below min_replicas")
        return self


class Policy(_Section):
    """The policy: what samples turns, and how its text becomes tokens."""

    engine: Literal["scripted", "sglang", "transformers", "http"] = Field(
        "scripted",
        description="scripted: plays the task's gold actions, no model; sglang, transformers: serve policy.model; "
        "http: any SGLang-compatible endpoint at policy.url",
    )
    model: str | None = Field(None, description="folder or hub name of the weights, for sglang and transformers")
    url: str | None = Field(None, description="of the endpoint, for http: a server, or the router before several")
    tokenizer: str | None = Field(
        None, description="folder or hub name; null: the model's; without one, the small one that ships with this"
    )
    tool_parser: str = Field("auto", description="auto, or a tool-call parser of the `renderers` package")
    history: Literal["append", "template"] = Field(
        "append", description="append: keep what the engine saw; template: follow a template that rewrites history"
    )
    context_length: int | None = Field(
        None, ge=256, description="tokens, prompt and turn together; null: the model's; without one, 65536"
    )
    response_length: int | None = Field(
        None, ge=1, description="tokens of an episode after its first prompt; null: as many as the context takes"
    )
    sampling: Sampling = Sampling()
    timeout_seconds: float = Field(600.0, gt=0, description="for one turn")
    retry_seconds: float = Field(
        120.0, ge=0, description="how long a turn is asked for again while its replica or endpoint is gone"
    )
    engine_arguments: dict[str, Any] = Field(
        default_factory=dict, description="for sglang: fields of its ServerArgs; for transformers: of from_pretrained"
    )
    environment: dict[str, str] = Field(default_factory=dict, description="environment variables of the replicas")
    replicas: int = Field(1, ge=1)
    autoscaling: Autoscaling | None = Field(None, description="instead of a fixed number of replicas")
    gpus_per_replica: float | None = Field(None, ge=0, description="null: what the engine's arguments ask for")
    cpus_per_replica: float = Field(
        0.0, ge=0, description="CPUs that Ray keeps for a replica; torch has as many threads there, one at least"
    )
    max_ongoing_requests: int = Field(
        1024, ge=1, description="turns that one replica's engine is given at a time; more wait before it"
    )
    start_seconds: float = Field(1800.0, gt=0, description="for the replicas to come up, loading included")
    weight_version: int = Field(0, ge=0, description="of the weights that policy.model holds")
    application: str | None = Field(
        None, description="a Serve application that runs already, made by deploy.policy:app; null: the service's own"
    )
    http_port: int | None = Field(
        None, ge=0, le=65535, description="also serve SGLang's /generate over HTTP on every node; null: do not"
    )
    script: Script = Script()

    @model_validator(mode="after")
    def _engine_has_what_it_serves(self) -> Self:
        if self.engine in ("sglang", "transformers") and not self.model:
            raise ValueError(f"policy.engine is {self.engine} but policy.model is not set; name a folder or a hub name")
        if self.engine == "http" and not (self.url and self.tokenizer):
            raise ValueError("policy.engine is http: set policy.url and policy.tokenizer")
        return self

    @property
    def tokenizer_name(self) -> str | None:
        """Folder or hub name of the tokenizer; None: the one that ships with this package."""
        return self.tokenizer or (self.model if self.engine != "scripted" else None)


class User(_Section):
    """The user simulator."""

    kind: Literal["scripted", "llm"] | None = Field(None, description="null: llm when a model is named, else scripted")
    model: str | None = Field(None, description="a litellm model name, e.g. openai/gpt-4.1-mini")
    base_url: str | None = Field(None, description="of an OpenAI-compatible endpoint; null: the provider's own")
    api_key_var: str | None = Field(None, description="NAME of the environment variable that holds the key")
    temperature: float | None = Field(0.0, ge=0.0, description="null: the provider's default")
    arguments: dict[str, Any] = Field(default_factory=dict, description="more arguments for litellm.completion")
    timeout_seconds: float = Field(60.0, gt=0, description="for one request")
    retries: int = Field(5, ge=0, description="further requests after a failed one, before the episode is at fault")
    max_retry_wait_seconds: float = Field(60.0, gt=0, description="upper bound of one wait; Retry-After is kept to it")
    script: Script = Script()

    @model_validator(mode="after")
    def _kind_fits_model(self) -> Self:
        if self.kind == "llm" and not self.model:
            raise ValueError("user.kind is llm but user.model is not set; name one, or set TAU2_USER_MODEL")
        return self

    @property
    def resolved_kind(self) -> Literal["scripted", "llm"]:
        """`kind`, or what follows from the model when it is null."""
        return self.kind or ("llm" if self.model else "scripted")


class Judge(_Section):
    """The language model that judges NL assertions."""

    model: str | None = Field(None, description="a litellm model name; null: τ²'s default")
    base_url: str | None = None
    api_key_var: str | None = Field(None, description="NAME of the environment variable that holds the key")
    arguments: dict[str, Any] = Field(default_factory=lambda: {"temperature": 0.0})


class Evaluation(_Section):
    """How episodes are scored."""

    type: Literal["env", "communicate", "action", "all", "nl_assertions", "all_with_nl_assertions"] = "all"
    mode: Literal["official", "fast", "check"] = Field(
        "fast",
        description="official: τ²'s evaluator replays the conversation; fast: it sees the episode's own environment "
        "instead; check: both, and a difference ends the collection",
    )
    judge: Judge = Judge()


class Limits(_Section):
    """What ends an episode as `truncated`, each with its own reason."""

    max_steps: int = Field(200, ge=1, description="τ²'s steps: messages and tool results")
    max_errors: int = Field(10, ge=1, description="tool errors, agent's and user's together")
    max_turns: int = Field(30, ge=1, description="policy turns")
    wall_seconds: float = Field(
        1800.0, gt=0, description="an episode cut by it has no reward: slowness is not its fault"
    )


class Service(_Section):
    """Size and place of the running service."""

    name: str = Field("rollout", min_length=1, description="of the coordinator actor; one service per name and cluster")
    namespace: str = Field("rollout_service", min_length=1, description="Ray namespace")
    actors: int | None = Field(
        None, ge=1, description="environment actors; null: one per CPU of the cluster, at most 64"
    )
    slots: int = Field(16, ge=1, le=1024, description="episodes that one actor runs at a time")
    max_attempts: int = Field(3, ge=1, description="tries of an episode that infrastructure faults stop")
    max_buffered_groups: int = Field(
        64, ge=1, description="finished groups that nobody took yet; beyond it no new group is started"
    )
    max_staleness: int | None = Field(
        None, ge=0, description="of a trajectory when it is handed out: weight version now minus its oldest; null: any"
    )
    late: Literal["drop", "deliver"] = Field(
        "drop", description="a trajectory over max_staleness: made again with newer weights, or delivered and counted"
    )


class RolloutConfig(_Section):
    """All settings. `RolloutConfig()` is the embedded default: retail, scripted policy and user, no model, no key."""

    tasks: Tasks = Tasks()
    agent: Literal["llm", "solo", "gt"] = Field(
        "llm", description="τ²'s agents: with a user; alone with a ticket; with the gold actions in its prompt"
    )
    policy: Policy = Policy()
    user: User = User()
    evaluation: Evaluation = Evaluation()
    limits: Limits = Limits()
    service: Service = Service()

    @property
    def user_kind(self) -> Literal["dummy", "scripted", "llm"]:
        """Whom the agent talks with; `dummy`: nobody, the solo agent works alone."""
        return "dummy" if self.agent == "solo" else self.user.resolved_kind

    def explicit(self) -> dict[str, Any]:
        """The fields that were set rather than left at their default, by dotted name."""
        return dict(_explicit(self))

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> RolloutConfig:
        """Read the settings: YAML at `path`, then the environment, then `overrides` ({"limits.max_turns": 40}).

        Raises:
            ConfigError: naming the field, the value and the remedy.
        """
        tree: dict[str, Any] = {}
        sources: dict[str, str] = {}
        if path is not None:
            for dotted, value in _flatten(_read_yaml(Path(path))):
                _put(tree, dotted, value)
                sources[dotted] = str(path)
        for name, dotted, value in _from_environment(os.environ if environ is None else environ):
            _put(tree, dotted, value)
            sources[dotted] = f"environment variable {name}"
        for dotted, value in (overrides or {}).items():
            _put(tree, dotted, value)
            sources[dotted] = "argument"
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise _readable(error, sources) from error

    def with_overrides(self, overrides: Mapping[str, Any]) -> RolloutConfig:
        """A copy with some fields replaced, checked again.

        Raises:
            ConfigError: naming the field, the value and the remedy.
        """
        tree = self.model_dump()
        for dotted, value in overrides.items():
            _put(tree, dotted, value)
        try:
            return RolloutConfig.model_validate(tree)
        except ValidationError as error:
            raise _readable(error, {}) from error


def secret(variable: str | None, field: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The secret that the environment variable holds; None when no variable is named.

    Raises:
        ConfigError: the variable is named but not set.
    """
    if variable is None:
        return None
    value = (os.environ if environ is None else environ).get(variable)
    if not value:
        raise ConfigError(
            f"{field}: the environment variable {variable} is not set.",
            f"Export {variable} where the service runs (on a cluster: in the job's runtime_env).",
        )
    return value


def parse_value(text: str, source: str) -> Any:
    """The value that `text` is in YAML: `3`, `true`, `{retail: 2}`, …

    Raises:
        ConfigError: it is not YAML; names the source.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The {source} is {text!r}, which is not YAML.", "Quote it, or mend it.") from error


def _explicit(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in section.model_fields_set:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _explicit(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read: {error.strerror}.", "Check the path.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The config file {path} is not YAML: {error}.", "Mend it there.") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"The config file {path} holds a {type(loaded).__name__}.", "Its top level must be sections.")
    return loaded


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Leaves of the tree with dotted names; a mapping that is a value itself (a mix of domains) is a leaf."""
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and dotted not in _MAPPING_FIELDS:
            leaves.extend(_flatten(value, f"{dotted}."))
        else:
            leaves.append((dotted, value))
    return leaves


_MAPPING_FIELDS = {
    "tasks.domain",
    "policy.engine_arguments",
    "policy.environment",
    "user.arguments",
    "evaluation.judge.arguments",
}


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for name in parents:
        below = tree.setdefault(name, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{dotted}: {name} is set to {below!r}, which has no parts.", "Set one or the other.")
        tree = below
    tree[leaf] = value


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    found = [(name, dotted, environ[name]) for name, dotted in TAU2_VARIABLES.items() if environ.get(name)]
    for name in sorted(environ):
        if name.startswith("ROLLOUT_") and "__" in name:
            dotted = name.removeprefix("ROLLOUT_").lower().replace("__", ".")
            found.append((name, dotted, parse_value(environ[name], f"environment variable {name}")))
        elif name == "ROLLOUT_AGENT":
            found.append((name, "agent", environ[name]))
    return found


def _readable(error: ValidationError, sources: Mapping[str, str]) -> ConfigError:
    """The first problem in words; the rest counted."""
    first = error.errors()[0]
    dotted = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("dict[", "function-")))
    source = next((f" (from {where})" for name, where in sources.items() if dotted.startswith(name)), "")
    more = f" ({error.error_count() - 1} more problems after this one.)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        valid = field_names()
        near = difflib.get_close_matches(dotted, valid, n=1, cutoff=0.5)
        siblings = [name for name in valid if name.rpartition(".")[0] == dotted.rpartition(".")[0]]
        hint = f"Did you mean {near[0]}?" if near else f"Valid here: {', '.join(siblings or valid)}."
        return ConfigError(f"{dotted}: no such setting{source}.", hint + more)
    message = str(first["msg"]).removeprefix("Value error, ")
    value = "" if first["type"] == "value_error" else f" is {first['input']!r}{source}:"
    return ConfigError(f"{dotted or 'config'}{value or ':'} {message}.", f"Set it to a valid value.{more}")


def field_names(model: type[BaseModel] = RolloutConfig, prefix: str = "") -> list[str]:
    """Dotted names of every setting, in order."""
    names: list[str] = []
    for name, info in model.model_fields.items():
        below = info.annotation
        if isinstance(below, type) and issubclass(below, BaseModel):
            names.extend(field_names(below, f"{prefix}{name}."))
        else:
            names.append(f"{prefix}{name}")
    return names
