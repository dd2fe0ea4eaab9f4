"""What `doctor` says of the service over HTTP."""

from __future__ import annotations

import socket

import pytest

import rollout_service.cli.gateway_checks as checks
from rollout_service.cli.finding import finding
from rollout_service.gateway.tokens import digest_of, new_token
from tests.support.episodes import settings
from tests.support.gateway import self_signed

HASH = digest_of(new_token())


def served(tmp_path, **gateway):
    """Settings of a gateway with these tokens."""
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(gateway.pop("tokens", f'trainer: {{sha256: "{HASH}", scopes: [read, collect]}}\n'))
    named = {f"gateway__{name}": value for name, value in gateway.items()}
    return settings(**{"gateway__port": 0, "gateway__tokens_file": str(tokens)} | named)


def test_a_port_that_another_server_has_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        config = served(tmp_path, port=port)
        taken = finding("gateway's port", lambda: checks.port(config, None))
        assert not taken.ok
        assert f"Port {port} of 127.0.0.1 cannot be used: Address already in use." in taken.text
        assert finding("gateway's port", lambda: checks.port(config, "auto")).ok is None
    assert checks.port(config, None) == f"{port}: free on this machine"
    assert checks.served_at(config) == f"the gateway at http://127.0.0.1:{port}"


def test_who_may_call_is_listed_and_expired_tokens_are_named(tmp_path):
    old = f'old: {{sha256: "{HASH}", scopes: [weights], expires: 2026-01-31}}\n'
    new = f'new: {{sha256: "{HASH}", scopes: [read, collect]}}\n'
    assert checks.tokens(served(tmp_path, tokens=old + new)) == "new (collect, read); expired: old on 2026-01-31"
    alone = finding("gateway's tokens", lambda: checks.tokens(served(tmp_path, tokens=old)))
    assert (alone.ok, HASH in alone.text) == (False, False)
    assert "All have expired: old on 2026-01-31. Append an entry with `rollout-service token NAME`." in alone.text
    assert "nobody may call" in finding("", lambda: checks.tokens(served(tmp_path, tokens="{}"))).text
    unreadable = served(tmp_path, tokens_file=str(tmp_path / "none.yaml"))
    assert "none.yaml cannot be read" in finding("", lambda: checks.tokens(unreadable)).text


@pytest.mark.parametrize(("days", "ok", "text"), [(1.0, True, "fits its key, valid"), (-1.0, False, "expired on")])
def test_a_certificate_that_has_expired_is_told(tmp_path, days, ok, text):
    certificate, key = self_signed(tmp_path, days)
    config = served(tmp_path, tls_certificate=str(certificate), tls_key=str(key))
    found = finding("gateway's certificate", lambda: checks.certificate(config))
    assert (found.ok, text in found.text) == (ok, True)
    assert checks.served_at(config).startswith("the gateway at https://")


def test_a_key_of_another_certificate_is_told(tmp_path):
    (tmp_path / "other").mkdir()
    certificate, key = self_signed(tmp_path)[0], self_signed(tmp_path / "other")[1]
    config = served(tmp_path, tls_certificate=str(certificate), tls_key=str(key))
    found = finding("gateway's certificate", lambda: checks.certificate(config))
    assert (found.ok, "is not the key of gateway.tls_certificate" in found.text) == (False, True)


def test_without_http_nothing_is_asked_for():
    config = settings()
    assert checks.served_at(config).startswith("none: the service is reached from within the cluster only")
    assert [checks.port(config, None), checks.tokens(config), checks.certificate(config)] == ["none is needed"] * 3
