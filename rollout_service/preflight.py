"""What can be refused before a service starts: settings, tokenizer, tasks, keys, and what endpoints say of themselves.
Where this machine alone runs the service, its engine, the model's folder and the keys of providers are checked, too.

Invariant: nothing is started and no model is asked. A client that starts a service checks all of it first;
`rollout-service doctor` shows each part. What another machine may have is not refused.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os

import rollout_service.config.secrets as secrets
import rollout_service.logs as logs
import rollout_service.served_user_check as served_user_check
from rollout_service.chat.codec import ChatCodec
from rollout_service.chat.suitability import check_suits
from rollout_service.config import RolloutConfig
from rollout_service.config.budget import Budget
from rollout_service.errors import ConfigError, RolloutError, ServiceError
from rollout_service.gateway import guard
from rollout_service.gateway.certificate import check_certificate
from rollout_service.policy import endpoint, engine_check
from rollout_service.policy.context import check_sampling
from rollout_service.record.trajectory import TaskRef
from rollout_service.redaction import safe_cause
from rollout_service.task_sampling.making import make
from rollout_service.tcp import check_listening

_log = logs.logger(__name__)


def check(config: RolloutConfig, *, here: bool = False) -> RolloutConfig:
    """Check everything that a service with this configuration needs. Blocks; it may be called beside a running event
    loop.

    Args:
        here: whether all of the service will run on this machine, with this Python and these environment variables.

    Returns:
        The configuration, with the context length that the policy's endpoint says and the date that the chat template
        shall write, where the settings leave them open.

    Raises:
        RolloutError: names what cannot be used, and what to do.
    """
    check_sampling(config.policy, config.policy.sampling)
    if here and config.policy.engine in ("sglang", "transformers"):
        engine_check.check_engine(config.policy)
        engine_check.check_model(config.policy)
    check_http(config, here=here)
    check_tape(config, here=here)
    check_user(config, here=here)
    check_review(config)
    if here:
        check_keys(config)
    warn_of_release()
    check_agent(config)
    say_left_out(config)
    check_judge(config)
    if config.policy.tokenizer_name is not None or config.policy.tool_parser != "auto":
        config = with_date(config, load_codec(config))  # with the defaults it is the one that ships with this package
    return with_context_length(config)


def check_http(config: RolloutConfig, *, here: bool) -> None:
    """Check the tokens of callers over HTTP; `here` also the files that only the nodes need to have.

    Raises:
        ConfigError: the tokens, the certificate or its key cannot be used.
    """
    gateway = config.gateway
    if here or (gateway.tokens_var or "") in os.environ:
        guard.tokens_of(gateway)
    if here:
        check_certificate(gateway)


def load_codec(config: RolloutConfig) -> ChatCodec:
    """The policy's codec, proved and suited to the configured episodes.

    Raises:
        CodecError: the tokenizer cannot be loaded, the codec cannot be proved, or its template lacks something.
    """
    codec = ChatCodec.of(config.policy)
    check_suits(codec, config)
    return codec


def check_tape(config: RolloutConfig, *, here: bool) -> None:
    """Check that the tape was recorded with these settings and tasks, or can be.

    Args:
        here: whether the folder must be on this machine; otherwise it is checked where it is.

    Raises:
        TapeError: it was not, or cannot be.
        ConfigError: no episode asks a model, so nothing can be on it.
    """
    if not config.tape.is_on:
        return
    if config.user_kind != "llm" and not _asks_judge(config):
        raise ConfigError(
            f"tape.mode is {config.tape.mode}, but no model plays the user and no configured task has a judge.",
            "Set user.model, or leave the tape out.",
        )
    if not (here or os.path.isdir(str(config.tape.path))):
        return
    from rollout_service.tau2 import taping

    taping.check_tasks(taping.opened(config), check_tasks(config))


def check_user(config: RolloutConfig, *, here: bool) -> None:
    """Check the user simulator.

    Args:
        here: whether a model that the service serves as the user will run on this machine.

    Raises:
        ConfigError: its key is not set, its model takes no such temperature, or its price is not known and there is a
            budget in dollars.
        UserSimulatorError: nothing listens at its address.
        RolloutError: the service cannot serve it, see `served_user_check.check`.
    """
    if config.user_kind != "llm" or config.tape.asks_nobody:
        return
    if config.serves_user:
        served_user_check.check(config, here=here)
        check_price(config, config.budget)
        return
    secrets.secret(config.user.api_key_var, "user.api_key_var")
    from rollout_service.tau2 import llm_user

    llm_user.check_user(config.user)
    check_price(config, config.budget)


def check_review(config: RolloutConfig) -> None:
    """Check that the user simulator can be reviewed, if it is to be.

    Raises:
        ConfigError: the installed τ²-bench has no reviewer, or the reviewer's key is not set.
        ServiceError: nothing listens at its address.
    """
    review, is_asked = config.user.review, not config.tape.asks_nobody
    if not review.is_on:
        return
    from rollout_service.tau2 import user_review

    user_review.check(review, needs_key=is_asked)
    if review.base_url is not None and is_asked:
        check_endpoint("user.review.base_url", review.base_url)


def check_price(config: RolloutConfig, budget: Budget) -> None:
    """Check that a budget of dollars can be held.

    Raises:
        ConfigError: the price of the user simulator's, its reviewer's or the judge's model is not known.
    """
    if budget.usd is None or config.tape.asks_nobody:
        return
    user, judge = config.user, config.evaluation.judge
    if user.model is not None and user.price.prompt_usd is None:
        _check_listed("user", user.model)
    review = user.review
    if review.model is not None and review.price.prompt_usd is None:
        _check_listed("user.review", review.model)
    if judge.model is not None and judge.price.prompt_usd is None and _asks_judge(config):
        _check_listed("evaluation.judge", judge.model)


def _check_listed(section: str, model: str) -> None:
    from rollout_service.tau2 import llm_user

    llm_user.check_price(section, model)


def _asks_judge(config: RolloutConfig) -> bool:
    """Whether a configured task has its judge."""
    from rollout_service.tau2 import evaluation, tasks

    return any(evaluation.is_judged(tasks.get(task), config.evaluation.type) for task in check_tasks(config))


def check_keys(config: RolloutConfig) -> None:
    """Check that the provider of the user simulator's model finds its key in this process's environment.

    Raises:
        ConfigError: it does not, and no variable is named.
    """
    user = config.user
    if config.tape.asks_nobody:
        return
    if config.user_kind != "llm" or user.serve or user.base_url is not None or user.api_key_var is not None:
        return
    from rollout_service.tau2 import llm_user

    if missing := llm_user.missing_keys(str(user.model)):
        raise ConfigError(
            f"user.model is {user.model!r}, and its provider's key is not set: {' or '.join(missing)}.",
            "Export it, or name the variable that holds the key in user.api_key_var.",
        )


def check_judge(config: RolloutConfig) -> None:
    """Check the judge's key, where one is named, and that something listens at its address, where a task asks it.

    Raises:
        ConfigError: the key is not set.
        ServiceError: nothing listens there.
    """
    judge = config.evaluation.judge
    if config.tape.asks_nobody:
        return
    secrets.secret(judge.api_key_var, "evaluation.judge.api_key_var")
    if judge.base_url is None:
        return
    if _asks_judge(config):
        check_endpoint("evaluation.judge.base_url", judge.base_url)


def check_endpoint(field: str, url: str) -> None:
    """Check that something listens at the URL, without a request.

    Raises:
        ServiceError: nothing does.
    """
    try:
        check_listening(url)
    except (OSError, ValueError) as error:
        raise ServiceError(
            f"{field}: nothing answers at {url}: {error}.", "Start its server, or correct the address."
        ) from safe_cause(error)


def warn_of_release() -> None:
    """Warn if the tests did not run with the installed τ²-bench.

    Raises:
        Tau2Error: it cannot be used at all.
    """
    from rollout_service.tau2 import compat

    if warning := compat.unknown_release():
        _log.warning("%s", warning)


def say_left_out(config: RolloutConfig) -> None:
    """Log which of the configured tasks are left out, and why.

    Raises:
        TaskError: as `check_tasks`.
    """
    from rollout_service.tau2.task_choice import TaskChoice

    for sentence in TaskChoice(config).words():
        _log.warning("%s", sentence)


def check_agent(config: RolloutConfig) -> None:
    """Check that the agent can play a configured task. A collection that draws one that it cannot play is refused when
    it is asked for.

    Raises:
        TaskError: unknown domain, split or task id.
        Tau2Error: it can play none of them.
    """
    chosen = check_tasks(config)
    if config.agent == "llm":  # it can play all of them
        return
    from rollout_service.tau2 import agent, tasks

    refusal: RolloutError | None = None
    for task in chosen:
        try:
            agent.check_task(config.agent, tasks.get(task))
            return
        except RolloutError as error:
            refusal = refusal or error
    if refusal is not None:
        raise refusal


def check_tasks(config: RolloutConfig) -> list[TaskRef]:
    """Every configured task once.

    Raises:
        TaskError: unknown domain, split or task id; or weights of tasks that are not there.
    """
    from rollout_service.tau2.task_choice import TaskChoice
    from rollout_service.tau2.tasks import pool

    chosen = config.tasks
    found = pool(chosen.domain, chosen.chosen_split, chosen.ids, TaskChoice(config).references)
    return make(chosen.sampler, found, chosen, shuffle=chosen.shuffle, seed=chosen.seed).whole


def with_date(config: RolloutConfig, codec: ChatCodec) -> RolloutConfig:
    """The configuration, with today's date if the chat template writes one, so that all actors write the same."""
    if config.policy.date == (codec.date or None):
        return config
    return config.model_copy(update={"policy": config.policy.model_copy(update={"date": codec.date})})


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
