"""Guard: lets a request in, or says in a sentence why not.

Invariant: the token is checked before anything else of a request is read. Requests with a bad token count against a
limit of their own, so they never take from those of a good one.
"""

from __future__ import annotations

import asyncio
import os

import rollout_service.config.secrets as secrets
from rollout_service.config import Gateway
from rollout_service.gateway.rate import RateLimit
from rollout_service.gateway.tokens import ANYBODY, Holder, Refusal, Scope, TokenFile, Tokens, parsed

_BURST_SECONDS = 2.0
"""After a pause, a caller may ask as often at once as in this many seconds."""

_NOBODY = ""
"""The caller, for the limit, of every request with a bad token. No token has this name."""


class Guard:
    """Who may call, and how often."""

    def __init__(self, tokens: Tokens | None, requests_per_second: float | None = None) -> None:
        """
        Args:
            tokens: None: anybody may call.
            requests_per_second: None: as often as anybody wants.
        """
        self._tokens = tokens
        self._looking = asyncio.Lock()
        rate = requests_per_second
        self._limit = None if rate is None else RateLimit(rate, max(1.0, rate * _BURST_SECONDS))

    async def admit(self, authorization: str | None, scope: Scope | None) -> Holder:
        """Who sent a request with this `Authorization` header.

        Args:
            scope: None: whatever the token allows.

        Raises:
            Refusal: the token is bad or does not allow `scope`, or the caller asks too often.
        """
        await self._look()
        try:
            holder = ANYBODY if self._tokens is None else self._tokens.holder(authorization)
        except Refusal:
            self._count(_NOBODY)
            raise
        self._count(holder.name)
        if scope is not None:
            holder.check_scope(scope)
        return holder

    async def _look(self) -> None:
        """Have the tokens that their file holds now."""
        if isinstance(self._tokens, TokenFile) and self._tokens.is_due:
            async with self._looking:
                if self._tokens.is_due:  # else another request has looked meanwhile
                    await asyncio.to_thread(self._tokens.look)

    def _count(self, caller: str) -> None:
        wait = 0.0 if self._limit is None else self._limit.wait(caller)
        if wait > 0.0:
            raise Refusal(429, f"These are too many requests: ask again in {wait:.1f} s.", wait)


def tokens_of(gateway: Gateway) -> Tokens | None:
    """The tokens that the settings name; None: they name none.

    Raises:
        ConfigError: the file cannot be read, the variable is not set, or one does not hold tokens.
    """
    if gateway.tokens_file is not None:
        return TokenFile(gateway.tokens_file)
    text = secrets.secret(gateway.tokens_var, "gateway.tokens_var", os.environ)
    return None if text is None else Tokens(parsed(text, f"variable {gateway.tokens_var}"))
