"""Bearer tokens: made, known by their hashes, and checked.

Invariant: the service never stores a token, only its SHA-256. A token is 24 random bytes and their checksum, so it
cannot be found from its hash, which needs no salt, and one that was cut short is told from one that is unknown. All
hashes are compared, in constant time. No error, log line or repr shows any part of a token or of a hash.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import math
import re
import secrets
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import rollout_service.config.yaml_text as yaml_text
import rollout_service.logs as logs
from rollout_service.config.calendar_date import check_date
from rollout_service.errors import ConfigError
from rollout_service.redaction import TOKEN_PREFIX, shown

_log = logs.logger(__name__)

Scope = Literal["read", "collect", "weights"]
"""What a token allows. `read`: status, metrics and settings. `collect`: collections and turns of the policy. `weights`:
new weights, pause and resume. None includes another."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

_RANDOM_BYTES = 24
_WHOLE = re.compile(rf"{TOKEN_PREFIX}([0-9a-f]{{{2 * _RANDOM_BYTES}}})([0-9a-f]{{8}})")
_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_NAMES = "Use letters, digits, dots, dashes and underscores, at most 64, and begin with a letter or a digit."

_LOOK_SECONDS = 1.0
"""Time between two looks whether the file changed."""

_MOST_BYTES = 1 << 20
"""Largest file of tokens."""


class Refusal(Exception):
    """A request that is not allowed, with the sentence that its sender is told.

    Attributes:
        status: 401 if the token is missing or wrong, 403 if it does not allow this, 429 if requests are too many.
        wait_seconds: when to ask again; 0.0: the same request will never be let in.
    """

    def __init__(self, status: int, sentence: str, wait_seconds: float = 0.0) -> None:
        super().__init__(sentence)
        self.status = status
        self.wait_seconds = wait_seconds

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        if self.status == 401:
            return {"www-authenticate": "Bearer"}
        return {"retry-after": str(math.ceil(self.wait_seconds))} if self.wait_seconds else {}


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a token, and what for."""

    name: str
    scopes: frozenset[Scope]
    expires: datetime | None = None
    """None: never."""
    digest: bytes = field(default=b"", repr=False)
    """SHA-256 of the token."""

    def is_expired(self, now: datetime) -> bool:
        """Whether the token is no longer let in."""
        return self.expires is not None and self.expires <= now

    def check_scope(self, scope: Scope) -> None:
        """Raise `Refusal` unless the token allows `scope`."""
        if scope not in self.scopes:
            allowed = ", ".join(sorted(self.scopes))
            raise Refusal(403, f"The token of {self.name} allows {allowed}, and this needs {scope}.")


ANYBODY = Holder("anybody", frozenset(SCOPES))
"""Who calls where no tokens are set, which is possible on the loopback address only."""


def new_token() -> str:
    """A new token. Nobody can make it again: what is kept is `digest_of` it."""
    body = secrets.token_hex(_RANDOM_BYTES)
    return f"{TOKEN_PREFIX}{body}{_checksum(body)}"


def digest_of(token: str) -> str:
    """The SHA-256 of a token, 64 hexadecimal digits."""
    return hashlib.sha256(token.encode()).hexdigest()


def _checksum(body: str) -> str:
    return f"{zlib.crc32(body.encode()):08x}"


def entry(name: str, scopes: Sequence[str], expires: str | None, token: str, today: date) -> str:
    """The line for the token that `parsed` reads.

    Args:
        expires: last day of its life, such as 2027-01-31; None: it has none.

    Raises:
        ConfigError: the name, a scope or the date cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"The name is {shown(name)}.", _NAMES)
    if wrong := [scope for scope in scopes if scope not in SCOPES]:
        raise ConfigError(f"The scope is {shown(wrong[0])}.", f"Choose from {', '.join(SCOPES)}.")
    line = f'{name}: {{sha256: "{digest_of(token)}", scopes: [{", ".join(dict.fromkeys(scopes))}]'
    if expires is None:
        return line + "}"
    try:
        last = date.fromisoformat(check_date(expires))
    except ValueError:
        raise ConfigError(f"The token expires on {shown(expires)}.", "Write a date, such as 2027-01-31.") from None
    if last < today:
        raise ConfigError(f"The token expires on {expires}, which is over.", f"Name a day from {today} on.")
    return f"{line}, expires: {expires}}}"


def parsed(text: str, source: str) -> list[Holder]:
    """The holders that a file or a variable lists: a YAML mapping of names to `sha256`, `scopes` and `expires`.

    Args:
        source: what the text is, for errors.

    Raises:
        ConfigError: names the entry and what is wrong with it. The text itself is not repeated.
    """
    try:
        entries = yaml_text.parse_value(text, source)
    except ConfigError:
        raise ConfigError(f"The {source} is not YAML, or has a name twice.", _EXAMPLE) from None
    if not isinstance(entries, Mapping):
        raise ConfigError(f"The {source} is not a mapping of names.", _EXAMPLE)
    return [_holder(name, entry, source) for name, entry in entries.items()]


_EXAMPLE = "Write what `rollout-service token NAME` prints, one entry below the other."


def _holder(name: Any, entry: Any, source: str) -> Holder:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"The {source} has an entry with an impossible name.", _NAMES)
    where = f"The entry {name} of the {source}"
    if not isinstance(entry, Mapping) or set(entry) - {"sha256", "scopes", "expires"}:
        raise ConfigError(f"{where} has other fields than sha256, scopes and expires.", _EXAMPLE)
    digest, scopes = entry.get("sha256"), entry.get("scopes")
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise ConfigError(
            f"{where} has a sha256 that is not 64 hexadecimal digits in quotes.", "Store the hash, never the token."
        )
    if not isinstance(scopes, list) or not scopes or not all(scope in SCOPES for scope in scopes):
        raise ConfigError(f"{where} has wrong scopes.", f"List one or more of {', '.join(SCOPES)}.")
    return Holder(name, frozenset(scopes), _expiry(entry.get("expires"), where), bytes.fromhex(digest))


def _expiry(value: Any, where: str) -> datetime | None:
    """The end of a day for a date, the moment for a time; UTC where no zone is given."""
    if value is None:
        return None
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    if not hasattr(value, "isoformat"):
        raise ConfigError(f"{where} expires at {shown(value)}.", "Write a date, such as 2027-01-31.")
    return datetime(value.year, value.month, value.day, 23, 59, 59, tzinfo=UTC)


def _sent(authorization: str | None) -> str:
    """The token in the header. It may also be the password of a URL, which clients send as basic authentication."""
    scheme, _, value = (authorization or "").strip().partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return ""
    return value.strip() if scheme.lower() == "bearer" else ""


class Tokens:
    """The tokens that are allowed now."""

    def __init__(self, holders: list[Holder], now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._holders = holders
        self._now = now

    @property
    def holders(self) -> list[Holder]:
        """Who holds a token, as it was read last."""
        return list(self._holders)

    def holder(self, authorization: str | None) -> Holder:
        """Who sent a request with this `Authorization` header.

        Raises:
            Refusal: the token is missing, not whole, unknown or expired.
        """
        token = _sent(authorization)
        if not token:
            raise Refusal(401, "There is no token: send it in the header Authorization, after the word Bearer.")
        whole = _WHOLE.fullmatch(token)
        if whole is None or not hmac.compare_digest(_checksum(whole[1]), whole[2]):
            raise Refusal(401, "The token is not whole: it was cut short or mistyped. Copy all of it.")
        found = self._match(hashlib.sha256(token.encode()).digest())
        if found is None:
            raise Refusal(401, "The token is not known here: it was revoked, or it is another service's.")
        if found.expires is not None and found.is_expired(self._now()):
            raise Refusal(
                401, f"The token of {found.name} expired on {found.expires:%Y-%m-%d %H:%M} UTC: ask for a new one."
            )
        return found

    def _match(self, digest: bytes) -> Holder | None:
        found = None
        for holder in self._holders:  # without an early end, so that the time does not tell how far a guess came
            if hmac.compare_digest(holder.digest, digest):
                found = holder
        return found


class TokenFile(Tokens):
    """Tokens in a file, read again when it changes: whoever checks one calls `look` first."""

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            clock: seconds that never go backwards.

        Raises:
            ConfigError: the file cannot be read, or does not hold tokens.
        """
        self._path = Path(path)
        self._clock = clock
        self._stamp = self._stamped()
        self._looked = clock()
        super().__init__(self._read())

    @property
    def is_due(self) -> bool:
        """Whether it is time to look whether the file changed."""
        return self._clock() - self._looked >= _LOOK_SECONDS

    def look(self) -> None:
        """Read the file if it changed. One that cannot be used changes nothing, since an editor may be half done. It
        blocks, so an event loop calls it in a thread."""
        try:
            stamp = self._stamped()
            if stamp != self._stamp:
                self._stamp, self._holders = stamp, self._read()
                _log.info("The tokens were read again: %d of them.", len(self._holders))
        except ConfigError as error:
            _log.error("The tokens in use stay as they are: %s", error, extra=logs.event("tokens"))
        finally:
            self._looked = self._clock()

    def _stamped(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise self._unreadable(error) from None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> list[Holder]:
        try:
            with self._path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
            if len(text) > _MOST_BYTES:
                raise ConfigError(f"The token file {self._path} has more than {_MOST_BYTES} bytes.", _EXAMPLE)
            return parsed(text.decode(), f"token file {self._path}")
        except OSError as error:
            raise self._unreadable(error) from None
        except UnicodeDecodeError:
            raise ConfigError(f"The token file {self._path} is not UTF-8 text.", _EXAMPLE) from None

    def _unreadable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"The token file {self._path} cannot be read: {error.strerror}.", "Check gateway.tokens_file."
        )
