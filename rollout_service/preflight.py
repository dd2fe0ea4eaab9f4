"""What can be refused before a service starts: settings, tokenizer, tasks, keys, and what endpoints say of themselves.

Invariant: nothing is started and no model is asked. A client that starts a service checks all of it first;
`rollout-service doctor` shows each part.
"""

from __future__ import annotations

import asyncio
import concurrent.futures

import rollout_service.config.secrets as secrets
from rollout_service.chat.codec import ChatCodec
from rollout_service.config import RolloutConfig
from rollout_service.config.budget import Budget
from rollout_service.policy import endpoint
from rollout_service.policy.context import check_sampling
from rollout_service.record.trajectory import TaskRef


def check(config: RolloutConfig) -> RolloutConfig:
    """Check everything that a service with this configuration needs. Blocks; it may be called beside a running event
    loop.

    Returns:
        The configuration, with the context length that the policy's endpoint says where the settings leave it open.

    Raises:
        RolloutError: names what cannot be used, and what to do.
    """
    check_sampling(config.policy, config.policy.sampling)
    check_user(config)
    check_judge(config)
    check_tasks(config)
    if config.policy.tokenizer_name is not None:  # the embedded tokenizer ships with this package
        load_codec(config)
    return with_context_length(config)


def load_codec(config: RolloutConfig) -> ChatCodec:
    """The policy's codec, proved.

    Raises:
        CodecError: the tokenizer cannot be loaded, or the codec cannot be proved.
    """
    return ChatCodec.load(config.policy.tokenizer_name, tool_parser=config.policy.tool_parser)


def check_user(config: RolloutConfig) -> None:
    """Check the user simulator.

    Raises:
        ConfigError: its key is not set, its model takes no such temperature, or its price is not known and there is a
            budget in dollars.
        UserSimulatorError: nothing listens at its address.
    """
    if config.user_kind != "llm":
        return
    secrets.secret(config.user.api_key_var, "user.api_key_var")
    from rollout_service.tau2 import llm_user

    llm_user.check_user(config.user)
    check_price(config, config.budget)


def check_price(config: RolloutConfig, budget: Budget) -> None:
    """Check that a budget of dollars can be held.

    Raises:
        ConfigError: the price of the user simulator's model is not known.
    """
    if budget.usd is not None and config.user.model is not None:
        from rollout_service.tau2 import llm_user

        llm_user.check_price(config.user.model)


def check_judge(config: RolloutConfig) -> None:
    """Check that the judge's key is set, where one is named.

    Raises:
        ConfigError: it is not.
    """
    secrets.secret(config.evaluation.judge.api_key_var, "evaluation.judge.api_key_var")


def check_tasks(config: RolloutConfig) -> list[TaskRef]:
    """Every configured task once.

    Raises:
        TaskError: unknown domain, split or task id.
    """
    from rollout_service.tau2.tasks import TaskSampler

    return TaskSampler(config.tasks.domain, config.tasks.split, config.tasks.ids).whole


def with_context_length(config: RolloutConfig, retry_seconds: float | None = None) -> RolloutConfig:
    """The configuration, with what the policy's endpoint says of itself.

    Args:
        retry_seconds: how long an endpoint that cannot be reached is asked again; None: as the settings say.

    Raises:
        ConfigError: the endpoint does not say how many tokens it takes.
        ServiceError: it cannot be reached.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # this one may have a running event loop
        policy = thread.submit(asyncio.run, endpoint.settled(config.policy, retry_seconds)).result()
    return config.model_copy(update={"policy": policy})
