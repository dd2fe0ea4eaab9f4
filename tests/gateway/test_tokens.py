"""Tokens of the gateway: who is let in, and what is never shown."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_service.errors import ConfigError
from rollout_service.gateway import tokens
from rollout_service.gateway.guard import Guard
from rollout_service.gateway.tokens import SCOPES, Refusal, TokenFile, Tokens, digest_of, new_token, parsed
from rollout_service.redaction import redact
from tests.support.commands import command

TOKEN = new_token()
TODAY = date(2026, 11, 27)


def entry(name: str, token: str, scopes: str = "collect", more: str = "") -> str:
    return f'{name}: {{sha256: "{digest_of(token)}", scopes: [{scopes}]{more}}}\n'


def refusal(known: Tokens, authorization: str | None) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        known.holder(authorization)
    return caught.value.status, str(caught.value)


KNOWN = Tokens(parsed(entry("trainer", TOKEN) + entry("other", new_token()), "test"))


def test_a_token_is_known_by_its_hash_and_allows_its_own_scopes_only():
    holder = KNOWN.holder(f"Bearer {TOKEN}")
    assert holder.name == "trainer"
    holder.check_scope("collect")
    for scope in set(SCOPES) - {"collect"}:
        with pytest.raises(Refusal, match=f"allows collect, and this needs {scope}") as caught:
            holder.check_scope(scope)
        assert caught.value.status == 403
    assert KNOWN.holder(f"bearer  {TOKEN} ").name == "trainer", "the scheme's case and spaces do not count"


@given(st.one_of(st.none(), st.text(max_size=80), st.text(max_size=80).map(lambda text: f"Bearer {text}")))
def test_no_other_text_is_let_in(authorization):
    status, sentence = refusal(KNOWN, authorization)
    assert status == 401
    assert sentence.startswith("There is no token" if "is no token" in sentence else "The token is not whole")


@given(st.integers(0, len(TOKEN) - 1), st.sampled_from("0123456789abcdef_ "))
def test_a_token_that_was_cut_or_mistyped_is_told_from_an_unknown_one(place, letter):
    assert "not whole" in refusal(KNOWN, f"Bearer {TOKEN[:place] or 'rst'}")[1]
    if letter != TOKEN[place]:
        assert "not whole" in refusal(KNOWN, f"Bearer {TOKEN[:place]}{letter}{TOKEN[place + 1 :]}")[1]
    assert "not known here" in refusal(KNOWN, f"Bearer {new_token()}")[1]


@pytest.mark.parametrize(
    ("expires", "valid_until"),
    [
        ("2027-01-31", datetime(2027, 1, 31, 23, 59, 58, tzinfo=UTC)),
        ("2027-01-31 12:00:00", datetime(2027, 1, 31, 11, 59, 59, tzinfo=UTC)),
        ("2027-01-31T12:00:00+02:00", datetime(2027, 1, 31, 9, 59, 59, tzinfo=UTC)),
    ],
)
def test_an_expired_token_is_refused_with_its_date(expires, valid_until):
    holders = parsed(entry("trainer", TOKEN, more=f", expires: {expires}"), "test")
    assert Tokens(holders, now=lambda: valid_until).holder(f"Bearer {TOKEN}").name == "trainer"
    late = Tokens(holders, now=lambda: valid_until + timedelta(seconds=2))
    assert refusal(late, f"Bearer {TOKEN}") == (
        401,
        f"The token of trainer expired on {holders[0].expires:%Y-%m-%d %H:%M} UTC: ask for a new one.",
    )


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_a_file_that_changes_rotates_the_tokens_and_a_broken_one_changes_nothing(tmp_path, caplog):
    path, clock, new = tmp_path / "tokens.yaml", Clock(), new_token()
    path.write_text(entry("trainer", TOKEN))
    guard = Guard(TokenFile(path, clock))

    async def name(token: str) -> str:
        return (await guard.admit(f"Bearer {token}", "collect")).name

    assert await name(TOKEN) == "trainer"
    path.write_text(entry("trainer", TOKEN) + entry("next", new))
    clock.now += 2
    assert await name(new) == "next"

    path.write_text(f"trainer: {{token: {new}")
    clock.now += 2
    assert await name(new) == "next"
    path.unlink()
    clock.now += 2
    assert await name(TOKEN) == "trainer"
    assert "stay as they are" in caplog.text

    path.write_text(entry("next", new))
    clock.now += 2
    with pytest.raises(Refusal, match="not known here"):
        await name(TOKEN)
    assert await name(new) == "next"
    for token in (TOKEN, new):
        assert token[4:20] not in caplog.text
        assert digest_of(token)[:12] not in caplog.text


async def test_a_file_of_tokens_is_read_beside_the_event_loop_and_once_for_all_who_ask(tmp_path, monkeypatch):
    path, clock = tmp_path / "tokens.yaml", Clock()
    path.write_text(entry("trainer", TOKEN))
    file = TokenFile(path, clock)
    guard, threads, look = Guard(file), [], file.look
    monkeypatch.setattr(file, "look", lambda: (threads.append(threading.get_ident()), look()))
    path.write_text("{}")
    clock.now += 2
    asked = [guard.admit(f"Bearer {TOKEN}", "collect") for _ in range(20)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert {str(each) for each in found} == {"The token is not known here: it was revoked, or it is another service's."}
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"trainer: [{TOKEN}", "is not YAML"),
        (TOKEN, "is not a mapping"),
        (entry("a", TOKEN) + entry("a", TOKEN), "has a name twice"),
        (entry("'a b'", TOKEN), "an entry with an impossible name"),
        (f"trainer: {{token: {TOKEN}, scopes: [read]}}", "trainer .* has other fields"),
        (f"trainer: {{sha256: {TOKEN}, scopes: [read]}}", "trainer .* not 64 hexadecimal digits"),
        (entry("trainer", TOKEN, "write"), "trainer .* wrong scopes. List one or more of read, collect, weights"),
        (entry("trainer", TOKEN, ""), "wrong scopes"),
        (entry("trainer", TOKEN, more=", expires: soon"), "expires at 'soon'. Write a date"),
    ],
    # The texts have random tokens, which would give each process of a run other names.
    ids=["yaml", "mapping", "twice", "name", "fields", "digits", "scope", "no scopes", "date"],
)
def test_a_list_of_tokens_that_cannot_be_used_is_refused_without_its_text(text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        parsed(text, "token file")
    assert TOKEN[4:20] not in str(caught.value)
    assert digest_of(TOKEN)[:12] not in str(caught.value)


def test_a_missing_file_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        TokenFile(tmp_path / "none")
    (tmp_path / "binary").write_bytes(os.urandom(16) + b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        TokenFile(tmp_path / "binary")


def test_a_token_and_its_hash_appear_in_no_repr_and_no_text_of_the_service():
    shown = repr(KNOWN.holder(f"Bearer {TOKEN}"))
    assert TOKEN[4:20] not in shown
    assert tokens.digest_of(TOKEN)[:12] not in shown
    assert redact(f"what was {TOKEN[:30]} there") == "what was [redacted] there"


def test_the_command_makes_an_entry_that_lets_its_token_in():
    made = command("token", "trainer", "--scope", "weights", "--expires", "2999-01-01")
    assert made.returncode == 0
    token = made.stderr.split()[-1]
    assert Tokens(parsed(made.stdout, "test")).holder(f"Bearer {token}").scopes == {"weights"}
    assert token[4:20] not in made.stdout
    wrong = command("token", "a b")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "The name is 'a b'. Use letters, digits" in " ".join(wrong.stderr.split())


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"name": "a b"}, "The name is 'a b'. Use letters"),
        ({"name": ""}, "The name is ''"),
        ({"scopes": ["read", "write"]}, "The scope is 'write'. Choose from read, collect, weights"),
        ({"expires": "2026-11-26"}, "expires on 2026-11-26, which is over. Name a day from 2026-11-27 on"),
        ({"expires": "tomorrow}, x: {"}, "Write a date, such as 2027-01-31"),
    ],
)
def test_an_entry_that_would_let_nobody_in_is_refused(asked, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        tokens.entry(**{"name": "a", "scopes": ["read"], "expires": None, "token": TOKEN, "today": TODAY} | asked)


def test_a_token_of_one_day_is_let_in_on_that_day():
    line = tokens.entry("a", ["read", "read"], "2026-11-27", TOKEN, TODAY)
    [holder] = parsed(line, "entry")
    assert (holder.name, holder.scopes, holder.is_expired(datetime(2026, 11, 27, 12, tzinfo=UTC))) == (
        "a",
        frozenset({"read"}),
        False,
    )
