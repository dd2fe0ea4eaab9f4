"""Certificate: whether the service can serve TLS with the files that its settings name.

Invariant: the files are read and nothing is started, so a certificate that no client would accept is refused before a
service is. No part of a key is in an error.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from rollout_service.config import Gateway
from rollout_service.errors import ConfigError

_CERTIFICATE, _KEY = "gateway.tls_certificate", "gateway.tls_key"


def check_certificate(gateway: Gateway, now: datetime | None = None) -> datetime | None:
    """Check that the certificates of the chain are valid now, and that the first one belongs to the key.

    Args:
        now: with a time zone; None: this moment.

    Returns:
        When the first of them expires; None: the settings name none.

    Raises:
        ConfigError: one is not valid or cannot be read, or the key does not fit. Names the field and the file.
    """
    if gateway.tls_certificate is None or gateway.tls_key is None:
        return None
    now = now or datetime.now(UTC)
    chain = _chain(gateway.tls_certificate)
    for each in chain:
        begins, ends = each.not_valid_before_utc, each.not_valid_after_utc
        if not begins <= now <= ends:
            said = f"expired on {_shown(ends)}" if now > ends else f"is not valid before {_shown(begins)}"
            raise ConfigError(
                f"{_CERTIFICATE}: {gateway.tls_certificate} {said}; it is {_shown(now)} on this machine.",
                "Name the file of a certificate that is valid, or set the machine's clock.",
            )
    _check_key(gateway.tls_certificate, gateway.tls_key)
    return min(each.not_valid_after_utc for each in chain)


def _shown(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _read(field: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{field}: {path} cannot be read: {error.strerror or error}.", "Correct the path, or the file's mode."
        ) from None


def _chain(path: str) -> list[x509.Certificate]:
    content = _read(_CERTIFICATE, path)
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise ConfigError(
            f"{_CERTIFICATE}: {path} holds no certificate.", "Name the file of a certificate chain in PEM form."
        ) from None


def _check_key(certificate: str, key: str) -> None:
    content = _read(_KEY, key)
    if b"PRIVATE KEY" not in content:
        raise ConfigError(f"{_KEY}: {key} holds no private key.", "Name the file of the key in PEM form.")
    if b"ENCRYPTED" in content:  # whoever loads it would be asked for a password on the terminal
        raise ConfigError(f"{_KEY}: {key} is encrypted.", "Name the file of a key without a password.")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        said = error.reason or str(error)
        why = "is not the key of gateway.tls_certificate" if "MISMATCH" in said else f"cannot be used: {said}"
        raise ConfigError(f"{_KEY}: {key} {why}.", "Name the certificate and the key that belong together.") from None
