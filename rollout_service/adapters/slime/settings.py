"""Translates slime's arguments, samples and sampling parameters for the service.

Invariant: everything that slime asks for and the service cannot do is refused by name, before the first episode.

The service's own arguments come from slime's `--custom-config-path`, a YAML file whose keys become attributes:

* `rollout_service_config`: path of the service's own YAML file (user simulator, limits, actors, name, history).
* `rollout_service_set`: settings by dotted name, which override that file: `{service.actors: 8}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

import rollout_service.adapters.rows as rows
from rollout_service.adapters.slime.rewards import GROUP_NORMALISED
from rollout_service.config import PolicyConfig, RolloutConfig
from rollout_service.config.sampling import Sampling
from rollout_service.errors import ConfigError
from rollout_service.policy.context import context_length
from rollout_service.record.trajectory import TaskRef

_PREFIX = "rollout_service_"
_OWN = {"rollout_service_config", "rollout_service_set"}

_OF_TEXT = {"skip_special_tokens", "spaces_between_special_tokens", "no_stop_trim"}
"""Parameters that only concern text. Turns are tokens here."""

_REFUSED = {
    "group_rm": "it would replace τ²-bench's rewards",
    "custom_rm_path": "it is never called, because every sample has τ²-bench's reward",
    "eval_custom_rm_path": "it is never called, because every sample has τ²-bench's reward",
    "rm_type": "it has no effect, because every sample has τ²-bench's reward",
    "use_rollout_routing_replay": "routed experts are not recorded",
    "mask_offpolicy_in_partial_rollout": "slime masks what a sample had before it was taken up again; an episode that "
    "slime stopped is played anew, and one that went on over a weight update keeps its older tokens",
    "apply_chat_template_kwargs": "an episode's prompts are rendered with policy.template_arguments of "
    "rollout_service_config, and not by slime",
    "multimodal_keys": "an episode is text alone",
    "sglang_enable_deterministic_inference": "slime gives each sample a sampling seed, which does not reach the engine",
}
"""slime's arguments that would have no effect here, or a wrong one, with the reason."""

_PASSED_ON = {"temperature", "top_p", "top_k", "max_new_tokens", "stop_token_ids"}


def router_url(args: Any) -> str:
    """URL of slime's router, as slime itself writes it (`slime/rollout/sglang_rollout.py`).

    Raises:
        ConfigError: there is no router.
    """
    ip, port = getattr(args, "sglang_router_ip", None), getattr(args, "sglang_router_port", None)
    if not ip or not port:
        raise ConfigError(
            "slime has no router: sglang_router_ip and sglang_router_port are not set.",
            "Call this from slime's rollout manager, which starts one, or pass --sglang-router-ip and -port.",
        )
    return f"http://{ip}:{port}"


def check_arguments(args: Any) -> None:
    """Check that slime is set up for τ² episodes.

    Raises:
        ConfigError: names the flag.
    """
    unknown = sorted(name for name in vars(args) if name.startswith(_PREFIX) and name not in _OWN)
    if unknown:
        raise ConfigError(
            f"{unknown[0]}: no such setting in --custom-config-path.", f"Valid here: {', '.join(sorted(_OWN))}."
        )
    if not getattr(args, "hf_checkpoint", None):
        raise ConfigError("--hf-checkpoint is not set.", "The service reads its tokenizer from there.")
    if getattr(args, "rollout_top_p", 1.0) != 1.0:
        raise ConfigError(
            f"--rollout-top-p is {args.rollout_top_p}: slime then wants each token's top-p set, which is not recorded.",
            "Use 1.0 for training; evaluation may differ (--eval-top-p).",
        )
    if getattr(args, "rollout_top_k", -1) != -1:
        raise ConfigError(
            f"--rollout-top-k is {args.rollout_top_k}: tokens would come from a part of the distribution, and slime's "
            "log-probs are of the whole.",
            "Use -1 for training; evaluation may differ (--eval-top-k).",
        )
    if getattr(args, "rollout_temperature", None) == 0:
        raise ConfigError(
            f"--rollout-temperature is {args.rollout_temperature}: greedy tokens have no importance ratio.",
            "Use one above 0 for training; evaluation may differ (--eval-temperature).",
        )
    for name, why in _REFUSED.items():
        if value := getattr(args, name, None):
            shown = "" if value is True else f" is {value!r}"
            raise ConfigError(f"--{name.replace('_', '-')}{shown}: {why}.", "Leave it out.")
    if getattr(args, "use_opd", False) and getattr(args, "opd_type", None) == "sglang":
        raise ConfigError(
            "--opd-type is sglang: the teacher's log-probs would come from a reward function that is never called.",
            "Use --opd-type megatron, or leave out --use-opd.",
        )
    _check_lengths(args)
    normalised = getattr(args, "advantage_estimator", None) in GROUP_NORMALISED
    if (
        normalised
        and getattr(args, "rewards_normalization", True)
        and not getattr(args, "custom_reward_post_process_path", None)
    ):
        raise ConfigError(
            "--custom-reward-post-process-path is not set: slime would count an infrastructure fault as reward 0.",
            "Set it to rollout_service.adapters.slime.reward_post_process.",
        )


def _check_lengths(args: Any) -> None:
    """Check that there are no bounds of prompts, which slime applies to lines of the prompt file, and no context length
    for evaluation only. slime itself fills in all but the first if they are not given."""
    context = getattr(args, "rollout_max_context_len", None)
    remedy = "Leave it out: --rollout-max-context-len bounds an episode, its prompt included."
    for name, filled_in in (
        ("eval_max_prompt_len", None),
        ("rollout_max_prompt_len", context and context - 1),
        ("eval_max_context_len", context),
    ):
        if (given := getattr(args, name, None)) not in (None, filled_in):
            raise ConfigError(f"--{name.replace('_', '-')} is {given}: it would bound no τ² episode.", remedy)


def check_rollout(args: Any, evaluation: bool) -> None:
    """Check that slime asks `generate_rollout` for nothing that only slime's own loop does.

    Raises:
        ConfigError: names the flag.
    """
    remedy = "Leave it out, or let slime's own rollout play: --custom-generate-function-path alone."
    if hooks := getattr(args, "rollout_sample_hook_path", None):
        raise ConfigError(f"--rollout-sample-hook-path is {hooks}: generate_rollout calls no such hook.", remedy)
    if not evaluation and getattr(args, "partial_rollout", False):
        raise ConfigError("--partial-rollout: generate_rollout gives slime no unfinished groups.", remedy)


def service_config(args: Any) -> RolloutConfig:
    """The service's settings: those of `rollout_service_config`, with the policy behind slime's router.

    If the file does not set them, the tokenizer is that of `--hf-checkpoint`, and the context length is what slime
    gives its engines.

    Raises:
        ConfigError: naming the field, the value and the remedy.
    """
    path, chosen = getattr(args, "rollout_service_config", None), getattr(args, "rollout_service_set", None) or {}
    if not isinstance(chosen, Mapping):
        raise ConfigError(f"rollout_service_set is {chosen!r}.", "Give names with values: {service.actors: 8}.")
    overrides = {**chosen, "policy.engine": "http", "policy.url": router_url(args)}
    config = RolloutConfig.load(path, overrides, defaults={"policy.tokenizer": args.hf_checkpoint})
    if "policy.context_length" not in config.explicit():
        config = config.with_overrides({"policy.context_length": _context_length(args)})
    if config.policy.history == "template":
        for flag, why in (
            ("partial_rollout", "--partial-rollout cannot take back an episode of several samples"),
            ("log_passrate", "--log-passrate takes every sample for an episode"),
        ):
            if getattr(args, flag, False):
                raise ConfigError(f"policy.history is template, and slime's {why}.", "Leave out one of them.")
    return config


def _context_length(args: Any) -> int:
    """Most tokens of a sample, or of a request to the engines. If no flag says, SGLang uses the configuration of the
    model that slime starts it with, `--hf-checkpoint`."""
    named = (getattr(args, name, None) for name in ("rollout_max_context_len", "sglang_context_length"))
    limits = [limit for limit in named if limit]
    return min(limits) if limits else context_length(PolicyConfig(engine="sglang", model=args.hf_checkpoint))


def sampling(params: Mapping[str, Any]) -> Sampling:
    """The `Sampling` of slime's sampling parameters. `max_new_tokens` is for each turn.

    Raises:
        ConfigError: a parameter does not reach the engine, or has a bad value.
    """
    given = {name: value for name, value in params.items() if value is not None and name not in _OF_TEXT}
    if not given.get("stop", True):
        del given["stop"]
    unknown = sorted(set(given) - _PASSED_ON)
    if unknown:
        raise ConfigError(
            f"Sampling parameter {unknown[0]}={given[unknown[0]]!r} does not reach the engine: turns are token ids.",
            f"Leave it out; passed on are {', '.join(sorted(_PASSED_ON))}.",
        )
    try:
        return Sampling(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"Sampling parameter {first['loc'][0]} is {first['input']!r}: {first['msg']}.", "Set it to a valid value."
        ) from None


def evaluation_sampling(dataset: Any) -> Sampling:
    """The `Sampling` of an entry of slime's `args.eval_datasets`, for `generate_rollout`.

    Raises:
        ConfigError: as `sampling`; or the entry has settings that only slime's own evaluation follows.
    """
    for name in ("metadata_overrides", "custom_generate_function_path"):
        if value := getattr(dataset, name, None):
            raise ConfigError(
                f"Evaluation set {dataset.name!r} has {name}={value!r}, which generate_rollout does not follow.",
                "Leave it out, or leave out --eval-function-path: slime's own evaluation does.",
            )
    for name in ("custom_rm_path", "rm_type", "apply_chat_template_kwargs", "multimodal_keys"):
        if value := getattr(dataset, name, None):
            raise ConfigError(
                f"Evaluation set {dataset.name!r} has {name}={value!r}: {_REFUSED[name]}.", "Leave it out."
            )
    return sampling(
        {
            "temperature": dataset.temperature,
            "top_p": dataset.top_p,
            "top_k": dataset.top_k,
            "max_new_tokens": dataset.max_response_len,
            "min_new_tokens": dataset.min_new_tokens,
            "repetition_penalty": dataset.repetition_penalty,
            "stop": dataset.stop,
            "stop_token_ids": dataset.stop_token_ids,
        }
    )


def task_of(sample: Any) -> TaskRef:
    """The task that a sample made by `prepare_data` names.

    Raises:
        ConfigError: its metadata names no task.
    """
    return rows.named(
        sample.metadata,
        f"The metadata of the sample with prompt {str(sample.prompt)[:50]!r}",
        "Write the prompts with `rollout-service prepare-data`; pass --input-key prompt --metadata-key metadata.",
    )
