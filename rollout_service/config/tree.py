"""RolloutConfig: every setting of the service, in one tree.

Invariant: a value comes from exactly one of four places, the stronger winning: default < YAML file < environment <
argument. An unknown key, a bad value, and a value that would have no effect beside the others are refused with the
field, the value and the remedy; secrets never stand in the tree, only the *names* of the environment variables that
hold them.

Environment variables: `ROLLOUT_SECTION__FIELD` sets `section.field` (`ROLLOUT_LIMITS__MAX_TURNS=40`), and the names
that τ²-bench users know are honoured, see `TAU2_VARIABLES`.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

import rollout_service.config.arguments as arguments
from rollout_service.config.sampling import Sampling
from rollout_service.config.secrets import EngineArguments, EnvVars, Misplaced, ModelArguments, Url, VariableName
from rollout_service.config.selection import read_domain, read_ids
from rollout_service.errors import ConfigError, TaskError
from rollout_service.redaction import redact, shown

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # it has no public name

TAU2_VARIABLES = {
    "TAU2_DOMAIN": "tasks.domain",
    "TAU2_TASK_SPLIT": "tasks.split",
    "TAU2_USER_MODEL": "user.model",
    "TAU2_USER_BASE_URL": "user.base_url",
    "TAU2_USER_API_KEY_VAR": "user.api_key_var",
}

RENAMED = {
    "policy.environment": "policy.env_vars",
    "policy.environment_from": "policy.env_vars_from",
}
"""Settings of earlier releases that have another name now. The old name is refused and the new one shown."""

_PREFIX = "ROLLOUT_"

_MOST_SECONDS = 1e8
"""Three years. Timers overflow at some length, and who means "for ever" must not get an error in mid-episode."""

Seconds = Annotated[float, Field(gt=0, le=_MOST_SECONDS)]
Pause = Annotated[float, Field(ge=0, le=_MOST_SECONDS)]
"""Seconds that may be 0."""

_MOST_PROCESSES = 10_000
"""Replicas, or environment actors. More of them is a slip of the finger."""


class _Refused(ValueError):
    """A value that does not go with others, or a bad one whose remedy pydantic does not know. `field` has its dotted
    name, or its own where a section does not know what it is a part of."""

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        super().__init__(f"{field} {problem} {remedy}")
        self.field = field
        self.problem = problem
        self.remedy = remedy


class _Readable(ModelMetaclass):
    """Makes the error of a section that is built by hand the service's own. Sections inside others do not pass here,
    so that their errors still know where they are."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__call__(*args, **kwargs)
        except ValidationError as error:
            raise _readable(error, {}, cast(type[BaseModel], cls)) from None


class _Section(BaseModel, metaclass=_Readable):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """The password of a URL is no part of what is shown."""
        for name, value in super().__repr_args__():
            yield name, redact(value) if isinstance(value, str) else value

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_converted(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes, no, on and off as truth values, which Python takes for 1 and 0; pydantic reads 0, 1 and "no"
        as truth values, and decodes bytes."""
        wants_truth = cls.model_fields[str(info.field_name)].annotation is bool
        if isinstance(value, bool) and not wants_truth:
            raise ValueError("a truth value (YAML's true, yes or on) does not fit here; quote it if it is text")
        if wants_truth and not isinstance(value, bool):
            raise ValueError("only true or false fits here")
        if isinstance(value, bytes):
            raise ValueError("bytes do not fit here; decode them")
        return value

    def refuse_idle(self, names: Iterable[str], prefix: str, why: str, remedy: str) -> None:
        """Refuse those of the fields that were set to something, where nothing would heed them.

        Raises:
            ValueError: names the first of them, and says why.
        """
        for name, info in type(self).model_fields.items():
            set_here = name in names and name in self.model_fields_set
            if set_here and getattr(self, name) != info.get_default(call_default_factory=True):
                raise _Refused(f"{prefix}{name}", f"is set, but has no effect: {why}.", remedy)


class Tasks(_Section):
    """Which τ²-bench tasks a collection draws when the call does not say."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    domain: str | dict[str, float] = Field(
        "retail", description="a domain, or a mix {domain: weight}; as text: retail=2,airline=1"
    )
    split: str = Field("base", description="train, test, base; telecom also has small and full")
    ids: list[str] | None = Field(None, description="only these task ids, of one domain; null: the whole split")
    shuffle: bool = Field(True, description="a new order each epoch; false: the order of the split, over and over")
    seed: int = Field(0, description="of the order and of every episode drawn")

    @field_validator("domain", "ids", mode="before")
    @classmethod
    def _is_readable(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and info.field_name == "ids":
            return None
        read = read_domain if info.field_name == "domain" else read_ids
        try:
            return read(value, f"tasks.{info.field_name}")
        except TaskError as error:
            raise _Refused(f"tasks.{info.field_name}", error.problem, error.remedy) from error

    @model_validator(mode="after")
    def _ids_are_of_one_domain(self) -> Self:
        if len(self.domains) > 1 and self.ids is not None:
            raise _Refused("tasks.ids", "goes with one domain, not with a mix.", "Leave out one of them.")
        return self

    @property
    def domains(self) -> list[str]:
        """The domain, or those of the mix."""
        return [self.domain] if isinstance(self.domain, str) else list(self.domain)


class Latency(_Section):
    """How long each turn of the scripted policy or user takes, in seconds."""

    distribution: Literal["constant", "uniform", "exponential"] = "constant"
    mean: Pause = 0.0
    spread: Pause = Field(0.0, description="half the width of the uniform distribution")

    @model_validator(mode="after")
    def _spread_is_of_a_width(self) -> Self:
        if self.distribution != "uniform":
            why = f"the distribution is {self.distribution}"
            self.refuse_idle({"spread"}, "", why, "Set distribution: uniform beside it, or leave it out.")
        return self


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
    max_replicas: int = Field(..., ge=1, le=_MOST_PROCESSES)
    target_ongoing_requests: float = Field(64.0, gt=0, description="turns in flight that one replica should have")
    upscale_delay_seconds: Pause = 30.0
    downscale_delay_seconds: Pause = Field(600.0, description="a replica that goes takes its prefix cache along")

    @model_validator(mode="after")
    def _bounds_are_ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise _Refused(
                "policy.autoscaling.max_replicas",
                f"is {self.max_replicas}, below min_replicas, which is {self.min_replicas}.",
                "Raise the one, or lower the other.",
            )
        return self


_ENGINES_WITH_REPLICAS = ("scripted", "sglang", "transformers")

_HEEDED_BY = {
    "url": ("http",),
    "script": ("scripted",),
    "engine_arguments": ("sglang", "transformers"),
    **dict.fromkeys(
        (
            "env_vars",
            "env_vars_from",
            "replicas",
            "autoscaling",
            "gpus_per_replica",
            "cpus_per_replica",
            "max_ongoing_requests",
            "start_seconds",
            "application",
            "http_port",
            "http_host",
            "http_body_bytes",
            "http_body_seconds",
            "http_prompts",
        ),
        _ENGINES_WITH_REPLICAS,
    ),
}
"""Settings of the policy that not every engine heeds, and those that do."""


class PolicyConfig(_Section):
    """The policy: what samples turns, and how its text becomes tokens."""

    engine: Literal["scripted", "sglang", "transformers", "http"] = Field(
        "scripted",
        description="scripted: plays the task's gold actions, no model; sglang, transformers: serve policy.model; "
        "http: any SGLang-compatible endpoint at policy.url",
    )
    model: str | None = Field(
        None, min_length=1, description="folder or hub name of the weights; for http: of those that url serves"
    )
    url: Url | None = Field(None, description="of the endpoint, for http: a server, or the router before several")
    tokenizer: str | None = Field(
        None, description="folder or hub name; null: the model's; without one, the small one that ships with this"
    )
    tool_parser: str = Field("auto", description="auto, or a tool-call parser of the `renderers` package")
    history: Literal["append", "template"] = Field(
        "append", description="append: keep what the engine saw; template: follow a template that rewrites history"
    )
    context_length: int | None = Field(
        None, ge=256, description="tokens, prompt and turn together; null: the model's, which an endpoint is asked for"
    )
    response_length: int | None = Field(
        None, ge=1, description="tokens of an episode after its first prompt; null: as many as the context takes"
    )
    sampling: Sampling = Sampling()
    timeout_seconds: Seconds = Field(600.0, description="for one turn")
    retry_seconds: Pause = Field(
        120.0, description="how long a turn is asked for again while its replica or endpoint is gone"
    )
    engine_arguments: EngineArguments = Field(
        default_factory=dict, description="for sglang: fields of its ServerArgs; for transformers: of from_pretrained"
    )
    env_vars: EnvVars = Field(
        default_factory=dict, description="environment variables of the replicas; Ray logs them, so no secrets"
    )
    env_vars_from: list[VariableName] = Field(
        default_factory=list,
        description="NAMES of environment variables that the replicas get, such as HF_TOKEN, with the values where the "
        "service is started; one that is not set there must be set on the replicas' nodes",
    )
    replicas: int = Field(1, ge=1, le=_MOST_PROCESSES)
    autoscaling: Autoscaling | None = Field(None, description="instead of a fixed number of replicas")
    gpus_per_replica: float | None = Field(None, ge=0, description="null: what the engine's arguments ask for")
    cpus_per_replica: float = Field(
        0.0, ge=0, description="CPUs that Ray keeps for a replica; torch has as many threads there, one at least"
    )
    max_ongoing_requests: int = Field(
        1024, ge=1, description="turns that one replica's engine is given at a time; more wait before it"
    )
    start_seconds: Seconds = Field(1800.0, description="for the replicas to come up, loading included")
    weight_version: int = Field(0, ge=0, lt=2**31, description="of the weights that policy.model holds")
    application: str | None = Field(
        None, description="a Serve application that runs already, made by deploy.policy:app; null: the service's own"
    )
    http_port: int | None = Field(
        None, ge=0, le=65535, description="also serve SGLang's /generate over HTTP on every node; null: do not"
    )
    http_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="where http_port listens on each node; 0.0.0.0: on every address. Whoever reaches it can sample",
    )
    http_body_bytes: int = Field(4 << 20, ge=1024, le=1 << 30, description="of one request; 413 beyond it")
    http_body_seconds: Seconds = Field(30.0, description="for a body to come; 408 after it")
    http_prompts: int = Field(256, ge=1, description="of one request; 400 beyond it")
    script: Script = Script()

    @model_validator(mode="after")
    def _engine_has_what_it_serves(self) -> Self:
        if self.engine == "scripted" and self.model is not None:
            raise _Refused(
                "policy.model",
                "is set, but policy.engine is scripted, which plays the tasks' gold actions and no model.",
                "Set policy.engine to sglang or transformers to serve the model, or to http if policy.url serves it.",
            )
        if self.engine in ("sglang", "transformers") and not self.model:
            raise _Refused(
                "policy.engine",
                f"is {self.engine} but policy.model is not set.",
                "Name a folder or a hub name there.",
            )
        if self.engine == "http" and not (self.url and self.tokenizer):
            missing = "policy.tokenizer" if self.url else "policy.url"
            raise _Refused(
                "policy.engine", f"is http, but {missing} is not set.", "Set policy.url and policy.tokenizer."
            )
        return self

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Self:
        for name, engines in _HEEDED_BY.items():
            if self.engine not in engines:
                why, others = f"policy.engine is {self.engine}", " or ".join(engines)
                self.refuse_idle({name}, "policy.", why, f"Leave it out, or set policy.engine to {others}.")
        if self.autoscaling is not None:
            why = "policy.autoscaling says how many replicas there are"
            self.refuse_idle({"replicas"}, "policy.", why, "Leave out one of them.")
        if self.http_port is None:
            self.refuse_idle({"http_host"}, "policy.", "policy.http_port is not set", "Set that too, or leave it out.")
        return self

    @property
    def serves(self) -> str:
        """The model's name, or `scripted` where no model samples."""
        return self.model or self.engine

    @property
    def tokenizer_name(self) -> str | None:
        """Folder or hub name of the tokenizer; None: the one that ships with this package."""
        return self.tokenizer or self.model


class User(_Section):
    """The user simulator."""

    kind: Literal["scripted", "llm"] | None = Field(None, description="null: llm when a model is named, else scripted")
    model: str | None = Field(None, description="a litellm model name, e.g. openai/gpt-4.1-mini")
    base_url: Url | None = Field(None, description="of an OpenAI-compatible endpoint; null: the provider's own")
    api_key_var: VariableName | None = Field(None, description="NAME of the environment variable that holds the key")
    temperature: float | None = Field(0.0, ge=0.0, description="null: the provider's default")
    arguments: ModelArguments = Field(default_factory=dict, description="more arguments for litellm.completion")
    timeout_seconds: Seconds = Field(60.0, description="for one request")
    retries: int = Field(5, ge=0, description="further requests after a failed one, before the episode is at fault")
    max_retry_wait_seconds: Seconds = Field(60.0, description="upper bound of one wait; Retry-After is kept to it")
    script: Script = Script()

    @model_validator(mode="after")
    def _kind_fits_model(self) -> Self:
        if self.kind == "llm" and not self.model:
            raise _Refused("user.kind", "is llm, but user.model is not set.", "Name a model, or set TAU2_USER_MODEL.")
        return self

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Self:
        if self.resolved_kind == "llm":
            remedy = "Leave it out, or set user.kind to scripted and leave out the model."
            self.refuse_idle({"script"}, "user.", "a language model plays the user", remedy)
            return self
        why = "user.kind is scripted" if self.kind else "user.model is not set, so the user is scripted"
        remedy = "Leave it out, or set user.kind to llm and user.model to a litellm model name."
        self.refuse_idle(type(self).model_fields.keys() - {"kind", "script"}, "user.", why, remedy)
        return self

    @property
    def resolved_kind(self) -> Literal["scripted", "llm"]:
        """`kind`, or what follows from the model when it is null."""
        return self.kind or ("llm" if self.model else "scripted")


class Judge(_Section):
    """The language model that judges NL assertions."""

    model: str | None = Field(None, description="a litellm model name; null: τ²'s default")
    base_url: Url | None = None
    api_key_var: VariableName | None = Field(None, description="NAME of the environment variable that holds the key")
    arguments: ModelArguments = Field(default_factory=lambda: {"temperature": 0.0})


class Evaluation(_Section):
    """How episodes are scored."""

    type: Literal["env", "communicate", "action", "all", "nl_assertions", "all_with_nl_assertions"] = "all"
    mode: Literal["official", "fast", "check"] = Field(
        "fast",
        description="official: τ²'s evaluator replays the conversation; fast: it sees the episode's own environment "
        "instead; check: both, and a difference ends the collection",
    )
    judge: Judge = Judge()

    @model_validator(mode="after")
    def _judge_is_asked(self) -> Self:
        if self.type in ("env", "communicate", "action"):
            why = f"evaluation.type is {self.type}, for which no judge is asked"
            self.judge.refuse_idle(Judge.model_fields, "evaluation.judge.", why, "Leave it out.")
        return self


class Limits(_Section):
    """What ends an episode as `truncated`, each with its own reason."""

    max_steps: int = Field(200, ge=1, description="τ²'s steps: messages and tool results")
    max_errors: int = Field(10, ge=1, description="tool errors, agent's and user's together")
    max_turns: int = Field(30, ge=1, description="policy turns")
    wall_seconds: Seconds = Field(1800.0, description="an episode cut by it has no reward: slowness is not its fault")


class Service(_Section):
    """Size and place of the running service."""

    name: str = Field("rollout", min_length=1, description="of the coordinator actor; one service per name and cluster")
    namespace: str = Field("rollout_service", min_length=1, description="Ray namespace")
    actors: int | None = Field(
        None, ge=1, le=_MOST_PROCESSES, description="environment actors; null: one per CPU of the cluster, at most 64"
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
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="least level of the lines that the service's processes log"
    )


class RolloutConfig(_Section):
    """All settings. `RolloutConfig()` is the embedded default: retail, scripted policy and user, no model, no key."""

    tasks: Tasks = Tasks()
    agent: Literal["llm", "solo", "gt"] = Field(
        "llm", description="τ²'s agents: with a user; alone with a ticket; with the gold actions in its prompt"
    )
    policy: PolicyConfig = PolicyConfig()
    user: User = User()
    evaluation: Evaluation = Evaluation()
    limits: Limits = Limits()
    service: Service = Service()

    @model_validator(mode="after")
    def _solo_has_no_user(self) -> Self:
        if self.agent == "solo":
            why, remedy = "agent is solo, which works alone", "Leave it out (or null), or choose another agent."
            self.user.refuse_idle(User.model_fields, "user.", why, remedy)
        return self

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
        *,
        defaults: Mapping[str, Any] | None = None,
    ) -> RolloutConfig:
        """Read the settings: YAML at `path`, then the environment, then `overrides` ({"limits.max_turns": 40}).

        Args:
            environ: variables by name; None: those of this process.
            defaults: by dotted name as `overrides`, for what none of the three says.

        Raises:
            ConfigError: naming the field, the value and the remedy.
        """
        layers: list[tuple[str, Iterable[tuple[str, Any]]]] = [("default", _by_name(defaults, "defaults"))]
        if path is not None:
            layers.append((str(path), _flatten(_read_yaml(path))))
        for name, dotted, value in _from_environment(os.environ if environ is None else environ):
            layers.append((f"environment variable {name}", _flatten({dotted: value})))
        layers.append(("argument", _by_name(overrides, "overrides")))
        tree: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for source, leaves in layers:
            for dotted, value in leaves:
                _put(tree, dotted, value)
                sources[dotted] = source
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise _readable(error, sources) from None

    def with_overrides(self, overrides: Mapping[str, Any]) -> RolloutConfig:
        """A copy with some fields replaced, checked again. What was left at its default counts as that still.

        Raises:
            ConfigError: naming the field, the value and the remedy.
        """
        tree = self.model_dump(exclude_unset=True)
        for dotted, value in _by_name(overrides, "overrides"):
            _put(tree, dotted, value)
        try:
            return RolloutConfig.model_validate(tree)
        except ValidationError as error:
            raise _readable(error, {}) from None


def parse_value(text: str, source: str) -> Any:
    """The value that `text` is in YAML: `3`, `true`, `{retail: 2}`, …

    Raises:
        ConfigError: it is not YAML, or has a key twice; names the source.
    """
    try:
        return _parse_yaml(text, source)
    except (yaml.YAMLError, ValueError, RecursionError):
        problem = f"The {source} is {shown(text, source)}, which is not YAML."
        raise ConfigError(problem, "Quote it, or mend it.") from None  # PyYAML's own text repeats it


def _parse_yaml(text: str, source: str) -> Any:
    """As `yaml.safe_load`, which takes the last of two equal keys without a word.

    Raises:
        ConfigError: a key comes twice.
    """
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_equal_keys(node, source)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_equal_keys(root: yaml.Node, source: str) -> None:
    seen: set[int] = set()
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key, yaml.ScalarNode) and lines.setdefault((key.tag, key.value), line) != line:
                    first = lines[key.tag, key.value]
                    raise ConfigError(
                        f"The {source} has {key.value!r} twice, in lines {first} and {line}; only one would count.",
                        "Put what belongs under it in one place.",
                    )
                nodes.append(value)


def _explicit(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in section.model_fields_set:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _explicit(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read_yaml(path: str | Path) -> dict[str, Any]:
    path = arguments.path("path", path)
    try:
        loaded = _parse_yaml(path.read_text(encoding="utf-8"), f"config file {path}")
    except OSError as error:
        raise ConfigError(f"The config file {path} cannot be read: {error.strerror}.", "Check the path.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"The config file {path} is not YAML: {_without_text(error)}.", "Mend it there.") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"The config file {path} holds a {type(loaded).__name__}.", "Its top level must be sections.")
    return loaded


def _without_text(error: Exception) -> str:
    """What the parser says, but for the line that it shows and the words that it quotes: a key may stand there."""
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
    problem = getattr(error, "problem", None) or type(error).__name__
    return where + re.sub(r"'[^']{2,}'", "…", problem)


def _by_name(given: Mapping[str, Any] | None, what: str) -> list[tuple[str, Any]]:
    if given is None:
        return []
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise ConfigError(f"{what} is {shown(given)}.", "Give settings by dotted name: {'limits.max_turns': 40}.")
    return _flatten(given)


def _flatten(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Leaves of the tree with dotted names. A mapping that is a value itself (a mix of domains) is a leaf; a section
    with nothing in it says nothing.

    Raises:
        ConfigError: a name comes twice, as `limits: {max_turns: 3}` and `limits.max_turns: 4`.
    """
    sections, mappings = _shapes()
    leaves: dict[str, Any] = {}

    def visit(below: Mapping[str, Any], prefix: str) -> None:
        for key, value in below.items():
            dotted = f"{prefix}{key}"
            if isinstance(value, Mapping) and dotted not in mappings and (value or dotted in sections):
                visit(value, f"{dotted}.")
            elif dotted in leaves:
                raise ConfigError(f"{dotted} is set twice, in two notations.", "Leave out one of them.")
            elif value is not None or dotted not in sections:
                leaves[dotted] = value

    visit(tree, "")
    return list(leaves.items())


def _put(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for name in parents:
        below = tree.get(name)
        if below is None:
            below = tree[name] = {}
        if not isinstance(below, dict):
            raise ConfigError(
                f"{dotted}: {name} is set to {shown(below, name)}, which has no parts.", "Set one of them."
            )
        tree = below
    tree[leaf] = value


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    """Variable, setting and value of each that sets one.

    Raises:
        ConfigError: one looks as if it set something, and does not.
    """
    found = [(name, dotted, environ[name]) for name, dotted in TAU2_VARIABLES.items() if environ.get(name)]
    for name in sorted(environ):
        if name == f"{_PREFIX}AGENT":
            found.append((name, "agent", environ[name]))
        elif name.startswith(_PREFIX) and "__" in name:
            found.append((name, _dotted(name), parse_value(environ[name], f"environment variable {name}")))
        elif name.startswith(_PREFIX) and not _is_of_kubernetes(name, environ[name]):
            known = {_variable(dotted): dotted for dotted in field_names()}
            near = [full for full in known if full.replace("__", "_") == name.replace("__", "_")]
            near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            hint = f"Did you mean {near[0]}?" if near else "A setting's is ROLLOUT_SECTION__FIELD, else rename yours."
            raise ConfigError(f"The environment variable {name} sets nothing.", hint)
        elif name.startswith("TAU2_") and name not in TAU2_VARIABLES:  # τ²-bench has some of its own
            near = difflib.get_close_matches(name, TAU2_VARIABLES, n=1, cutoff=0.85)
            if near:
                raise ConfigError(f"The environment variable {name} sets nothing.", f"Did you mean {near[0]}?")
    return found


def _variable(dotted: str) -> str:
    return _PREFIX + dotted.upper().replace(".", "__")


def _dotted(variable: str) -> str:
    """The setting that a variable names. Names of environment variables keep their case: NCCL_DEBUG is one."""
    *parents, leaf = variable.removeprefix(_PREFIX).split("__")
    prefix = ".".join(parents).lower()
    return f"{prefix}.{leaf if prefix == 'policy.env_vars' else leaf.lower()}"


_KUBERNETES = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")


def _is_of_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes sets this in every pod, for a service that is called rollout or rollout-something."""
    return _KUBERNETES.search(name) is not None or (name.endswith("_PORT") and "://" in value)


def _readable(error: ValidationError, sources: Mapping[str, str], model: type[BaseModel] | None = None) -> ConfigError:
    """The first problem in words; the rest counted. `model` is what was to be built: by default all settings."""
    model = model or RolloutConfig
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    dotted = ".".join(path)
    refused = first.get("ctx", {}).get("error")
    if isinstance(refused, _Refused):
        dotted = refused.field if "." in refused.field else ".".join([*path, refused.field])
    where = next((source for name, source in sources.items() if _overlap(name, dotted)), None)
    source = "" if where is None else f" (from {where})"
    more = f" ({error.error_count() - 1} more problems after this one.)" if error.error_count() > 1 else ""
    if isinstance(refused, Misplaced):
        return ConfigError(f"{dotted}{source}: {refused.problem}", refused.remedy + more)
    if isinstance(refused, _Refused):
        problem = refused.problem.removeprefix(dotted).lstrip()
        joint = "" if problem.startswith(":") else " "
        return ConfigError(f"{dotted}{source}{joint}{problem}", refused.remedy + more)
    if first["type"] == "extra_forbidden":
        if (renamed := _new_name(dotted)) is not None:
            return ConfigError(f"{dotted}: no such setting{source}.", f"It is called {renamed} now.{more}")
        siblings = list(_section(model, path[:-1]).model_fields)
        near = difflib.get_close_matches(path[-1], siblings, n=1)
        full = [".".join([*path[:-1], name]) for name in near or siblings]
        hint = f"Did you mean {full[0]}?" if near else f"Valid here: {', '.join(full)}."
        return ConfigError(f"{dotted}: no such setting{source}.", hint + more)
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "missing":
        return ConfigError(f"{dotted} is not set{source}.", f"Set it.{more}")
    if first["type"] == "model_type":
        below = [f"{dotted}.{name}" for name in _section(model, path).model_fields]
        hint = f"Set what is in it: {', '.join(below)}."
        return ConfigError(f"{dotted} is {shown(first['input'], dotted)}{source}, but it is a section.", hint + more)
    value = f" is {shown(first['input'], dotted)}{source}:"
    return ConfigError(f"{dotted or 'config'}{value} {message}.", f"Set it to a valid value.{more}")


def _new_name(dotted: str) -> str | None:
    """The new name of a setting that was renamed. A section that is built by hand gives only the last part."""
    return next((new for old, new in RENAMED.items() if f".{old}".endswith(f".{dotted}")), None)


def _overlap(one: str, other: str) -> bool:
    """Whether two dotted names are one setting, or one of them a section that holds the other."""
    shorter, longer = sorted((f"{one}.", f"{other}."), key=len)
    return longer.startswith(shorter)


def _section(model: type[BaseModel], path: Iterable[str]) -> type[BaseModel]:
    """The section at the path, below `model`."""
    for name in path:
        model = _model_of(model.model_fields[name].annotation) or model
    return model


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, be it one that may be null; None: it holds a value."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


@functools.cache
def _shapes() -> tuple[frozenset[str], frozenset[str]]:
    """Dotted names of the sections that cannot be null, and of the fields whose value is a mapping."""
    sections: set[str] = set()
    mappings: set[str] = set()

    def visit(model: type[BaseModel], prefix: str) -> None:
        for name, info in model.model_fields.items():
            dotted, below = f"{prefix}{name}", _model_of(info.annotation)
            if below is not None:
                if below is info.annotation:
                    sections.add(dotted)
                visit(below, f"{dotted}.")
            elif dict in {get_origin(kind) for kind in (info.annotation, *get_args(info.annotation))}:
                mappings.add(dotted)

    visit(RolloutConfig, "")
    return frozenset(sections), frozenset(mappings)


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
