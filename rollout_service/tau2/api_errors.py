"""Errors of a model's API, as litellm raises them: what another request, or another episode, can change.

Invariant: a request is repeated only if it may succeed. Client errors (4xx) are final except for those that pass by
themselves; whatever litellm or a client library raises otherwise may come from a half answer, and is asked again.
"""

from __future__ import annotations

import email.utils
import sys
import time

from rollout_service.errors import is_final

_PASSING_STATUSES = {408, 409, 425, 429}
"""Client errors by number, but the same request may succeed later."""


def is_refused(error: BaseException) -> bool:
    """Whether the same request is bound to fail again: a wrong key, an unknown model, a missing library."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _PASSING_STATUSES
    return isinstance(error, ImportError)


def is_refused_always(error: BaseException) -> bool:
    """Whether another episode's requests are bound to fail too."""
    return is_refused(error) and not _is_about_the_conversation(error)


def _is_about_the_conversation(error: BaseException) -> bool:
    """Whether it speaks of what was said so far: another episode may say something else."""
    if "litellm" not in sys.modules:  # then it raised nothing, and importing it takes seconds
        return False
    from litellm.exceptions import ContentPolicyViolationError, ContextWindowExceededError

    return isinstance(error, (ContentPolicyViolationError, ContextWindowExceededError))


def ends_episodes(error: BaseException) -> bool:
    """`errors.is_final`, for code that asks such an API: what it always refuses is final as well."""
    return is_refused_always(error) or is_final(error)


def retry_after(error: BaseException) -> float | None:
    """Seconds that the API asked to wait; None when it named no time that can be read."""
    response = getattr(error, "response", None)
    headers = getattr(error, "litellm_response_headers", None) or getattr(response, "headers", None) or {}
    value = headers.get("retry-after") or headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
