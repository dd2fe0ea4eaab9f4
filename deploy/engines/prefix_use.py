"""PrefixUse: what the turns of episodes found of their prefixes in an engine's cache.

Invariant: a prefix counts as evicted only if its keys and values could have been there: the turn before sampled it, and
no weight update emptied the cache since. Requests that belong to no episode do not count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rollout_service.policy.base import Generation, TurnInfo
from rollout_service.policy.replicas import CacheFigures

_LATEST_TURNS, _LATEST_FIRST = 32, 64
"""Number of turns, and of first turns, that the means are of. Contexts grow from turn to turn, so few turns count."""

_SPEED_TOKENS = 65_536
"""Tokens of prompts over which the speed is measured. The first steps are slow: the engine compiles kernels in them."""


class PrefixUse:
    """Counts of one engine's turns."""

    def __init__(self, page_size: int = 1) -> None:
        """
        Args:
            page_size: tokens in whose multiples the cache keeps prefixes.
        """
        self._page_size = page_size
        self._contexts: deque[int] = deque(maxlen=_LATEST_TURNS)
        self._shared: deque[int] = deque(maxlen=_LATEST_FIRST)
        self._later_turns = 0
        self._recomputed = 0
        self._recompute_seconds = 0.0
        self._measured = 0, 0.0
        """Tokens of prompts, and the seconds that they took, when the speed was measured last."""
        self._token_seconds = 0.0
        """Seconds for a token of a prompt; 0: not known."""

    def computed(self, tokens: int, seconds: float) -> None:
        """Note how many tokens of prompts the engine has computed since it started, and in how many seconds."""
        more, passed = tokens - self._measured[0], seconds - self._measured[1]
        if more > 0 and (more >= _SPEED_TOKENS or not self._measured[0]):
            self._token_seconds = passed / more
        if more >= _SPEED_TOKENS:
            self._measured = tokens, seconds

    def add(self, generation: Generation, info: TurnInfo, retractions: int = 0) -> None:
        """Count a turn.

        Args:
            retractions: how often the engine broke the turn off for want of memory, and began it again.
        """
        if info.task is None or generation.finish_reason == "abort":
            return
        context = generation.prompt_tokens + len(generation.token_ids)
        self._contexts.append(context)
        recomputed = retractions * context
        if info.turn == 0:
            self._shared.append(generation.cached_tokens)
        elif info.known_tokens and generation.prefix_version == info.prefix_version:
            self._later_turns += 1
            missing = info.known_tokens - generation.cached_tokens
            recomputed += missing if missing > self._page_size else 0  # the last page is never full
        self._recomputed += recomputed
        self._recompute_seconds += recomputed * self._token_seconds

    def figures(self, capacity: int, inside: int, sampling: int, fixed_share: float) -> CacheFigures:
        """The figures now. The arguments are `CacheFigures`' fields that the engine itself knows."""
        return CacheFigures(
            capacity,
            inside,
            sampling,
            self._later_turns,
            self._recomputed,
            self._recompute_seconds,
            len(self._contexts),
            _mean(self._contexts),
            _mean(self._shared),
            fixed_share,
        )


def fixed_share(moments: Sequence[float] | None) -> float:
    """Share of a step's time that does not depend on the number of turns, by a straight line through all steps.

    Args:
        moments: number of steps, and sums of turns, of time, of turns², and of turns times time; None: not known.
    """
    if not moments or not moments[0] or not moments[2]:
        return 1.0
    turns, seconds, squares, products = (total / moments[0] for total in moments[1:5])
    variance = squares - turns**2
    if variance <= 1e-9:  # all steps had as many
        return 1.0
    for_each = (products - turns * seconds) / variance
    return min(1.0, max(0.0, 1 - for_each * turns / seconds))


def _mean(values: deque[int]) -> float:
    found = values.copy()  # another thread may add
    return sum(found) / max(1, len(found))
