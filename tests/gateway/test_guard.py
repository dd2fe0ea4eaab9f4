"""Who is let in, what counts against whose limit, and what a start refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout_service import preflight
from rollout_service.errors import ConfigError
from rollout_service.gateway.guard import Guard
from rollout_service.gateway.tokens import Refusal, Tokens, digest_of, new_token, parsed
from tests.support.episodes import settings

TOKEN = new_token()
ENTRY = f'trainer: {{sha256: "{digest_of(TOKEN)}", scopes: [collect]}}'


async def test_bad_tokens_never_take_from_the_limit_of_a_good_one():
    guard = Guard(Tokens(parsed(ENTRY, "test")), requests_per_second=0.01)
    for status in (401, 429, 429):
        with pytest.raises(Refusal) as refused:
            await guard.admit("Bearer x", "collect")
        assert refused.value.status == status
    assert (await guard.admit(f"Bearer {TOKEN}", "collect")).name == "trainer"
    with pytest.raises(Refusal, match=r"ask again in \d"):
        await guard.admit(f"Bearer {TOKEN}", "collect")


async def test_without_tokens_anybody_may_call():
    assert (await Guard(None).admit(None, "weights")).name == "anybody"


@pytest.mark.parametrize("wrong", ["gateway.tokens_file", "gateway.tls_certificate"])
def test_files_that_cannot_be_used_are_refused_before_a_start_on_this_machine_only(wrong: str, tmp_path: Path):
    tokens, pem = tmp_path / "tokens.yaml", tmp_path / "x.pem"
    tokens.write_text(f"trainer: {TOKEN}" if wrong == "gateway.tokens_file" else ENTRY)
    pem.write_text("no certificate")
    tls = {"gateway__tls_certificate": str(pem), "gateway__tls_key": str(pem)} if "tls" in wrong else {}
    config = settings(gateway__port=0, gateway__tokens_file=str(tokens), **tls)
    preflight.check_http(config, here=False)
    with pytest.raises(ConfigError, match="token file" if wrong == "gateway.tokens_file" else wrong) as refused:
        preflight.check_http(config, here=True)
    assert TOKEN[4:20] not in str(refused.value)


def test_a_variable_that_lists_no_tokens_is_refused_where_it_is_set(monkeypatch):
    config = settings(gateway__port=0, gateway__tokens_var="GATEWAY_TOKENS")
    preflight.check_http(config, here=False)
    monkeypatch.setenv("GATEWAY_TOKENS", "no-mapping-9f41c7")
    with pytest.raises(ConfigError, match="variable GATEWAY_TOKENS is not a mapping"):
        preflight.check_http(config, here=False)
    monkeypatch.setenv("GATEWAY_TOKENS", ENTRY)
    preflight.check_http(config, here=True)
