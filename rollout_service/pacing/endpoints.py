"""Endpoints: which of a service's models have limits of their own, and the gates of one process towards them.

Invariant: user simulator, judge and reviewer share a gate where they are one model at one address, because they share
its limits there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import rollout_service.served_user as served_user
from rollout_service.config import RolloutConfig
from rollout_service.pacing.controller import Controller
from rollout_service.pacing.gate import NOTICE_SECONDS, Exchange, Gate

Side = Literal["user", "judge", "review"]

GRADER_LONGEST_WAIT = 60.0
"""Most seconds that the provider of the judge or the reviewer can ask for between two requests."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model at an address."""

    side: Side
    """Who is the first to ask it, in the order of `Side`."""
    bound: int
    """Most requests in flight, all environment actors together."""
    longest_wait: float
    """Most seconds without a request that the provider can ask for."""

    def controller(self) -> Controller:
        """A new controller of its limit."""
        return Controller(self.bound, self.longest_wait, NOTICE_SECONDS)


def of(config: RolloutConfig) -> dict[Side, Endpoint]:
    """Each side's endpoint. A side that asks no model has none."""
    config = served_user.as_called(config)
    user, judge, review = config.user, config.evaluation.judge, config.user.review
    asked: list[tuple[tuple[str | None, str | None], Endpoint]] = []
    if config.user_kind == "llm":
        asked.append(((user.model, user.base_url), Endpoint("user", user.max_concurrency, user.max_retry_wait_seconds)))
    if judge.model is not None or "nl_assertions" in config.evaluation.type:
        own = Endpoint("judge", judge.max_concurrency, GRADER_LONGEST_WAIT)
        asked.append(((judge.model or "the judge's default", judge.base_url), own))
    if review.is_on:
        own = Endpoint("review", user.max_concurrency, GRADER_LONGEST_WAIT)
        asked.append(((review.model or "the reviewer's default", review.base_url), own))
    first: dict[tuple[str | None, str | None], Endpoint] = {}
    return {endpoint.side: first.setdefault(place, endpoint) for place, endpoint in asked}


def gates(config: RolloutConfig, exchange: Callable[[Side], Exchange] | None = None) -> Mapping[Side, Gate]:
    """A process's gates by side.

    Args:
        exchange: gives the way to whoever divides an endpoint's places, by `Endpoint.side`; None: this process is the
            only one.
    """
    give_up_seconds = config.service.give_up_seconds
    found = of(config)
    made = {
        each.side: Gate(each.bound, each.longest_wait, give_up_seconds, exchange and exchange(each.side))
        for each in found.values()
    }
    return {side: made[each.side] for side, each in found.items()}
