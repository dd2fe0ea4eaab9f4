"""Redaction: takes secrets out of text that leaves the service.

Invariant: `redact` leaves no part of a secret that this process knows, however the text escapes it, and nothing that
has the shape of a secret. A text is redacted before it is cut, because half a secret is a secret too.

A process knows three kinds of secrets: values given to `remember`, values of environment variables whose names say that
they hold a secret, and passwords in URLs that environment variables hold.
"""

from __future__ import annotations

import base64
import functools
import logging
import os
import re
import traceback
import urllib.parse
from collections.abc import Iterator

REDACTED = "[redacted]"

TOKEN_PREFIX = "rst_"
"""What the service's own tokens begin with, so that they are recognized in any text."""

_SHORTEST = 4
"""Least length of a secret. A shorter one protects nothing, and would be found in many words."""

_SHORTEST_BY_NAME = 8
"""The same for a variable that only its name marks as a secret, such as TEST_TOKEN=test."""

_remembered: set[str] = set()


def remember(secret: str) -> None:
    """Make `redact` remove this value from every text from now on. It may also be an encoded key or password."""
    if len(secret.strip()) >= _SHORTEST:
        _remembered.add(secret.strip())


def remember_url(url: str) -> None:
    """`remember` the user's name and password in a URL, also as HTTP's basic authentication encodes them."""
    for secret in _secrets_of_url(url):
        remember(secret)


def redact(text: str, limit: int | None = None) -> str:
    """`text` with every secret replaced; then cut to `limit` characters, if one is given."""
    known = _pattern(frozenset(_known()))
    if known is not None:
        text = known.sub(REDACTED, text)
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def conceal(text: str) -> str:
    """`redact`, and also remove what might be a secret: any long random run of letters and digits. For text that
    repeats a user's input, because the user may have put a key in the wrong place."""
    return _OPAQUE.sub(REDACTED, redact(text))


def shown(value: object, name: str = "", limit: int = 200) -> str:
    """The value of a setting as an error shows it. It is left out if the name says that it may be a secret."""
    if is_secret_name(name.lower().removesuffix("_var")):
        return "[not shown: it may be a secret]"
    try:
        text = conceal(repr(value))
    except Exception:  # a repr can fail: that of a number with too many digits does
        return f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def has_secret_shape(text: str) -> bool:
    """Whether something in the text looks like a key, a password in a URL, or an authorization header."""
    return any(shape.sub(replacement, text) != text for shape, replacement in _SHAPES)


def shows_secret(error: BaseException) -> bool:
    """Whether a traceback of the error, including its causes, would show a secret."""
    text = "".join(traceback.format_exception(error))
    return redact(text) != text


def safe_cause(error: BaseException) -> BaseException | None:
    """For `raise … from safe_cause(error)`: the error, or None if its text would show a secret."""
    return None if shows_secret(error) else error


class RedactingFilter(logging.Filter):
    """Removes secrets from what a logger writes."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record; always True."""
        record.msg, record.args = redact(record.getMessage()), ()
        if record.exc_info and record.exc_info[1] is not None and shows_secret(record.exc_info[1]):
            # Handlers write `exc_text` if there is no exception to format.
            record.exc_text = redact("".join(traceback.format_exception(record.exc_info[1]))).rstrip()
            record.exc_info = None
        return True


def keep_out_of_logs(*names: str) -> None:
    """Remove secrets from what the loggers of these names write. A second call changes nothing."""
    for name in names:
        logger = logging.getLogger(name)
        if not any(isinstance(each, RedactingFilter) for each in logger.filters):
            logger.addFilter(RedactingFilter())


# Names ---------------------------------------------------------------------------------------------------------------

_SECRET_NAME = re.compile(
    r"""(?:^|_)(?:
        \w*api_?key | \w*(?:secret|password|passwd|passphrase)s? | (?<=_)pwd | jwt | authorization | cookie
        | credentials? | bearer_token\w* | license | access_key_id | secret_id
        | (?:private|access|account|master|license|signing|encryption|subscription|auth|ingestion|client|service)_key
        | (?<!cache_)key | token(?:_v\d+)?
    )$""",
    re.VERBOSE,
)

_TOKENS_OF_TEXT = re.compile(
    r"(?:^|_)(?:eos|bos|pad|unk|mask|sep|cls|stop|end|start|image|audio|video|think|max|min|per|first|next|last)_token$"
)


@functools.lru_cache(maxsize=4096)
def is_secret_name(name: str) -> bool:
    """Whether a variable, an argument or a header of this name holds a secret: OPENAI_API_KEY, aws_session_token,
    X-Api-Key. Names of places that hold a secret (API_KEY_FILE) do not count, nor do tokens of text (eos_token)."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name) if not name.isupper() else name
    plain = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    return bool(_SECRET_NAME.search(plain)) and plain != "key" and not _TOKENS_OF_TEXT.search(plain)


# What is known -------------------------------------------------------------------------------------------------------

_URL_WITH_USER = re.compile(r"[A-Za-z][\w+.-]*://\S+@\S+")


def _known() -> Iterator[str]:
    yield from _remembered
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_BY_NAME and is_secret_name(name):
            yield value.strip()
        elif "@" in value and _URL_WITH_USER.fullmatch(value):  # most values have none
            yield from _secrets_of_url(value)


def _secrets_of_url(url: str) -> list[str]:
    """Name and password together and the password alone: as written, decoded, and both together in base64."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port
        place = parts.netloc
    except ValueError:  # the password holds an unescaped /
        place = url.partition("://")[2]
    userinfo, at, _ = place.rpartition("@")
    if not at:
        return []
    decoded = urllib.parse.unquote(userinfo)
    found = []
    for text in {userinfo, decoded}:
        password = text.partition(":")[2] or text
        found += [text, password]
        # Without the padding: in a longer text, the last characters depend on what follows.
        found.append(base64.b64encode(text.encode()).decode().rstrip("="))
    return [each for each in found if len(each) >= _SHORTEST]


@functools.lru_cache(maxsize=8)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    """Finds all of these secrets, the longest first."""
    if not secrets:
        return None
    return re.compile("|".join(_escaped(secret) for secret in sorted(secrets, key=len, reverse=True)))


def _escaped(secret: str) -> str:
    """Finds the secret also if JSON, Python's `repr`, a URL or HTML escaped it, once or several times, or if its line
    breaks became other white space."""
    return "".join(_unit(unit) for unit in re.findall(r"\s+|\S", secret))


def _unit(unit: str) -> str:
    if unit.isspace():
        return r"(?:\s|\\+[nrt]|%(?:25)*(?:0[aAdD9]|20)|\+)+"
    if unit.isascii() and unit.isalnum():
        return unit
    percent = "".join(rf"%(?:25)*(?i:{byte:02x})" for byte in unit.encode())
    forms = [percent, *(re.escape(part) for part in _HTML.get(unit, ())), re.escape(unit)]
    if not unit.isascii():
        units = unit.encode("utf-16-be")
        forms.append("".join(rf"\\+u(?i:{units[i : i + 2].hex()})" for i in range(0, len(units), 2)))
        forms.append("".join(rf"\\+x(?i:{byte:02x})" for byte in unit.encode()))
        forms.append(rf"\\+x(?i:{ord(unit):02x})" if ord(unit) < 256 else rf"\\+U(?i:{ord(unit):08x})")
    return rf"(?:\\*(?:{'|'.join(forms)}))"


_HTML = {"&": ("&amp;",), "<": ("&lt;",), ">": ("&gt;",), '"': ("&quot;", "&#34;"), "'": ("&#x27;", "&#39;")}


# What has the shape --------------------------------------------------------------------------------------------------

_NAME = (  # the end of a name: a pattern with the start too would be tried at every dot and dash of a long text
    r"(?:api[_-]?key|secret|password|passwd|private[_-]key|secret[_-]key|access[_-]key(?:[_-]id)?"
    r"|(?:access|auth|refresh|session|bearer|id|hf)[_-]token)"
)
_HEADER = (
    r"(?:(?:proxy-)?authorization|(?:x-(?:goog-)?)?api-key|x-auth-token|ocp-apim-subscription-key|(?:set-)?cookie)"
)
_QUOTE = r"\\*[\"']"
_SCHEME = r"(?:(?:bearer|basic|token|digest)[ \t]+)?"

_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        REDACTED,
    ),
    # Name and password in a URL, also in an escaped one.
    (re.compile(r"(?<=:)(\\*/\\*/)[^\s/?#\"'<>\\]+@"), rf"\1{REDACTED}@"),
    (re.compile(r"(?i)(:|%3A)(%2F%2F)(?:(?!%2F|%3F|%23)[^\s/?#\"'<>&])+?%40"), rf"\1\2{REDACTED}%40"),
    # Keys in a URL's query.
    (
        re.compile(
            rf"(?i)([?&;](?:[\w.-]*{_NAME}|key|token|sig|signature|x-amz-(?:signature|credential|security-token))=)"
            r"[^\s&;#\"'<>\\]+"
        ),
        rf"\1{REDACTED}",
    ),
    # Headers and named values: "authorization": "…", api_key='…', Authorization: …
    (re.compile(rf"(?i)\b({_HEADER}(?:{_QUOTE})?\s*[:=,]\s*b?({_QUOTE}))(?:(?!\2).)+"), rf"\1{REDACTED}"),
    (
        re.compile(rf"(?i)\b({_HEADER}\s*:\s*)(?!\\*[\"']){_SCHEME}[^\s,;}}]+"),
        rf"\1{REDACTED}",
    ),
    (re.compile(rf"(?i)({_NAME}(?:{_QUOTE})?\s*[:=]\s*b?({_QUOTE}))(?:(?!\2).)+"), rf"\1{REDACTED}"),
    (re.compile(rf"(?i)({_NAME}=)(?!\\*[\"']|\[redacted)[^\s,;&)\]}}]+"), rf"\1{REDACTED}"),
    (re.compile(r"\b((?i:bearer)\s+)(?!(?i:auth|token))[A-Za-z0-9._~+/\-]{8,}=*"), rf"\1{REDACTED}"),
    (re.compile(r"\b((?i:basic)\s+)(?=\S*[A-Z0-9=])[A-Za-z0-9+/]{8,}=*"), rf"\1{REDACTED}"),
    # Keys with their providers' well-known prefixes.
    (
        re.compile(
            r"(?<![A-Za-z0-9])(?:"
            r"(?:sk|pk|rk)[-_][A-Za-z0-9_\-]{12,}"
            r"|(?:gsk|xai|nvapi|pplx|glpat|gh[opsur]|github_pat|r8|fw|tgp|xox[abeprs])[-_][A-Za-z0-9_\-]{16,}"
            r"|hf_[A-Za-z0-9]{16,}"
            rf"|{TOKEN_PREFIX}[0-9a-f]{{8,}}"
            r"|key-(?=[a-z]*\d)[A-Za-z0-9]{16,}"
            r"|AIza[A-Za-z0-9_\-]{30,}|(?:AKIA|ASIA)[A-Z0-9]{16}|ya29\.[A-Za-z0-9_\-]{16,}"
            r"|eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}(?:\.[A-Za-z0-9_\-]*)?"
            r")"
        ),
        REDACTED,
    ),
)

_OPAQUE = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?=[A-Za-z0-9]*[A-Za-z])(?=(?:[A-Za-z]*\d){2})[A-Za-z0-9]{16,}=*"
    r"|[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
    r"|(?<![+/])[A-Za-z0-9+/]{15,}={1,2}(?![A-Za-z0-9=])"
    r")"
)
