"""A certificate that no client would accept is refused before anything is started, by field, date and remedy."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import rollout_service.services as services
from rollout_service.config import Gateway
from rollout_service.errors import ConfigError
from rollout_service.gateway.certificate import check_certificate
from tests.support.gateway import self_signed
from tests.support.services import start


def named(certificate: Path, key: Path) -> Gateway:
    return Gateway(port=0, tls_certificate=str(certificate), tls_key=str(key))


def test_a_valid_pair_says_until_when(tmp_path):
    ends = check_certificate(named(*self_signed(tmp_path, days=3.0)))
    assert ends is not None
    assert timedelta(days=2.9) < ends - datetime.now(UTC) < timedelta(days=3.1)
    assert check_certificate(Gateway(port=0)) is None


@pytest.mark.parametrize(("later", "text"), [(-3.0, "is not valid before"), (2.0, "expired on")])
def test_a_certificate_is_refused_outside_its_time_with_the_date(tmp_path, later, text):
    gateway, now = named(*self_signed(tmp_path)), datetime.now(UTC) + timedelta(days=later)
    with pytest.raises(ConfigError, match=rf"gateway\.tls_certificate: .*{text} \d{{4}}-\d\d-\d\d \d\d:\d\d") as said:
        check_certificate(gateway, now)
    assert "set the machine's clock" in said.value.remedy


def other_key(certificate: Path, key: Path) -> None:
    (key.parent / "other").mkdir()
    key.write_bytes(self_signed(key.parent / "other")[1].read_bytes())


WRONG: dict[str, Callable[[Path, Path], object]] = {
    r"gateway\.tls_certificate: .*cannot be read: No such file": lambda certificate, key: certificate.unlink(),
    r"gateway\.tls_certificate: .*holds no certificate": lambda certificate, key: certificate.write_text("none"),
    r"gateway\.tls_key: .*cannot be read: Is a directory": lambda certificate, key: (key.unlink(), key.mkdir()),
    r"gateway\.tls_key: .*holds no private key": lambda certificate, key: key.write_bytes(certificate.read_bytes()),
    r"gateway\.tls_key: .*is encrypted": lambda certificate, key: key.write_text("BEGIN ENCRYPTED PRIVATE KEY"),
    r"gateway\.tls_key: .*cannot be used": lambda certificate, key: key.write_bytes(key.read_bytes()[:-60]),
    r"gateway\.tls_key: .*is not the key of gateway\.tls_certificate": other_key,
}


@pytest.mark.parametrize("text", WRONG)
def test_a_pair_that_cannot_be_used_is_refused_by_its_field(tmp_path, text):
    files = self_signed(tmp_path)
    WRONG[text](*files)
    with pytest.raises(ConfigError, match=text):
        check_certificate(named(*files))


def test_a_service_with_an_expired_certificate_is_refused_before_an_actor_is_started(cluster, tmp_path):
    certificate, key = self_signed(tmp_path, days=-1.0)
    asked = {"gateway__port": 0, "gateway__tls_certificate": str(certificate), "gateway__tls_key": str(key)}
    with pytest.raises(ConfigError, match="expired on"):
        start("expired", **asked)
    assert services.find("expired", "rollout_service") is None
