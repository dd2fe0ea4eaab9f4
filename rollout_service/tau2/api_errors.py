"""Errors of a model's API, as litellm raises them: whether another request, or another episode, may succeed.

Invariant: a request is repeated only if it may succeed. Client errors (4xx) are final, except for those that pass by
themselves. Any other error of litellm or a client library may come from an incomplete answer, so the request is
repeated.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping

from rollout_service.errors import is_final
from rollout_service.pacing import advice

_PASSING_STATUSES = {408, 409, 425, 429}
"""Status codes of client errors after which the same request may succeed later."""


def is_refused(error: BaseException) -> bool:
    """Whether the same request must fail again: a wrong key, an unknown model, a missing library."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _PASSING_STATUSES
    return isinstance(error, ImportError)


def is_refused_always(error: BaseException) -> bool:
    """Whether another episode's requests must fail too."""
    return is_refused(error) and not _is_about_the_conversation(error)


def _is_about_the_conversation(error: BaseException) -> bool:
    """Whether the error is about this conversation. Another episode says other things."""
    if "litellm" not in sys.modules:  # then it raised nothing, and importing it takes seconds
        return False
    from litellm.exceptions import ContentPolicyViolationError, ContextWindowExceededError

    return isinstance(error, (ContentPolicyViolationError, ContextWindowExceededError))


def ends_episodes(error: BaseException) -> bool:
    """`errors.is_final`, extended for code that calls such an API: what the API always refuses is final too."""
    return is_refused_always(error) or is_final(error)


def is_rate_limit(error: BaseException) -> bool:
    """Whether the endpoint refused the request because it has a limit, which says nothing about the request."""
    return getattr(error, "status_code", None) == 429


def is_overload(error: BaseException) -> bool:
    """Whether the endpoint failed, or kept silent for too long."""
    status = getattr(error, "status_code", None)
    return isinstance(error, TimeoutError) or (isinstance(status, int) and (status >= 500 or status == 408))


def headers(error: BaseException) -> Mapping[str, str]:
    """The headers of the API's answer, as far as they are known."""
    response = getattr(error, "response", None)
    return getattr(error, "litellm_response_headers", None) or getattr(response, "headers", None) or {}


def retry_after(error: BaseException) -> float | None:
    """Seconds that the API asks to wait. None: it names no readable time."""
    return advice.read(headers(error)).retry_after


def wait(error: BaseException, attempt: int, first: float, most: float) -> float:
    """Seconds before the request is repeated, with some jitter, so that not all who failed return at the same moment.

    Args:
        attempt: how often it was repeated already.
        first: seconds before the first repetition; doubles each time, unless the API names a time.
        most: it is never more.
    """
    asked = retry_after(error)
    if asked is not None:
        return min(asked + first * random.random(), most)
    return min(first * 2 ** min(attempt, 16) * random.uniform(0.5, 1.5), most)
