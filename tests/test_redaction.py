"""Text that leaves the service holds no secret, however it was escaped, wrapped or cut."""

from __future__ import annotations

import base64
import html
import inspect
import json
import logging
import re
import traceback
import urllib.parse
from collections.abc import Callable

import litellm
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rollout_service import redaction
from rollout_service.errors import (
    ConfigError,
    EpisodeFault,
    Fault,
    FaultKind,
    ServiceError,
    boundary,
    discreet,
    first_line,
    last_cause,
)
from rollout_service.redaction import (
    REDACTED,
    conceal,
    is_secret_name,
    keep_out_of_logs,
    redact,
    remember,
    remember_url,
)

ESCAPES: dict[str, Callable[[str], str]] = {
    "plain": str,
    "repr": repr,
    "bytes": lambda text: repr(text.encode()),
    "JSON": json.dumps,
    "JSON in Unicode": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "repr of JSON": lambda text: repr(json.dumps(text)),
    "URL": lambda text: urllib.parse.quote(text, safe=""),
    "URL, slashes kept": urllib.parse.quote,
    "form": urllib.parse.quote_plus,
    "URL in a URL": lambda text: urllib.parse.quote(urllib.parse.quote(text, safe=""), safe=""),
    "HTML": html.escape,
}


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(redaction, "_remembered", set())


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]), min_size=4, max_size=12)
secrets = st.lists(words, min_size=1, max_size=3).map("\n".join)


@pytest.mark.parametrize("escape", ESCAPES.values(), ids=list(ESCAPES))
@settings(deadline=None)
@given(secret=secrets)
@example(secret="pa/ss wo\"rd'\\")
@example(secret="pä§s:w@rd&<>")
@example(secret="-----BEGIN KEY-----\nabcd\nefgh\n-----END KEY-----")
def test_a_known_secret_is_taken_out_in_every_escape(escape, secret):
    redaction._remembered.clear()
    remember(secret)
    before, middle, after = redact(f"<< {escape(secret)} >>").split(" ")
    assert (before, re.sub(r"^b|[\\\"']", "", middle), after) == ("<<", REDACTED, ">>")


@settings(deadline=None)
@given(secret=secrets, limit=st.integers(5, 200), before=st.text(" \n", max_size=150))
def test_a_text_is_redacted_before_it_is_cut(secret, limit, before):
    redaction._remembered.clear()
    remember(secret)
    text = redact(f"{before}{secret}", limit)
    assert text == (whole if len(whole := f"{before}{REDACTED}") <= limit else whole[: limit - 1] + "…")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("part", ["a.", "1-2-", "-_", "a/", "/+", "secret ", "secret\\", "?a", "eyJa.", "x://"])
def test_a_long_text_is_redacted_in_a_time_that_grows_as_its_length(part):
    text = part * (200_000 // len(part))
    assert redact(text) == text
    assert conceal(text) == text


@settings(deadline=None)
@given(st.text())
@example("https://[redacted]@host/?key=[redacted] Authorization: [redacted] api_key='[redacted]' Bearer [redacted]")
def test_redacting_twice_is_redacting_once(text):
    assert redact(redact(text)) == redact(text)


SHAPED = [
    ("Incorrect API key provided: sk-abcdefghijklmnop.", "Incorrect API key provided: [redacted]."),
    ("sk-proj-Ab1_cd-efghijklmnop", "[redacted]"),
    ("token hf_AbCdEfGhIjKlMnOpQr, then", "token [redacted], then"),
    ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
    ("a JWT: eyJhbGciOiJIUzI1.eyJzdWIiOiIx.abc", "a JWT: [redacted]"),
    ("http://user:pa@ss@host:8000/v1 is down", "http://[redacted]@host:8000/v1 is down"),
    ("http%3A%2F%2Fuser%3Apass%40host%2Fv1", "http%3A%2F%2F[redacted]%40host%2Fv1"),
    (r"https:\/\/user:pass@host", r"https:\/\/[redacted]@host"),
    ("GET /v1?key=abc&model=m&access_token=xyz1", "GET /v1?key=[redacted]&model=m&access_token=[redacted]"),
    ("Authorization: Bearer correct-horse", "Authorization: [redacted]"),
    ("{'authorization': 'Basic dXNlcjpwYXNz', 'a': 'b'}", "{'authorization': '[redacted]', 'a': 'b'}"),
    ('{"x-api-key": "correct horse"}', '{"x-api-key": "[redacted]"}'),
    (r"{\"api_key\": \"correct horse\"}", r"{\"api_key\": \"[redacted]\"}"),
    ("your key is Basic dXNlcjpwYXNz", "your key is Basic [redacted]"),
    ("completion(api_key='correct horse', n=1)", "completion(api_key='[redacted]', n=1)"),
    ("password=hunter2, n=1", "password=[redacted], n=1"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc", "[redacted]"),
]


@pytest.mark.parametrize(("text", "clean"), SHAPED)
def test_what_has_the_shape_of_a_secret_is_taken_out(text, clean):
    assert redact(text) == clean


@pytest.mark.parametrize(
    "text",
    [
        "Basic authentication is required",
        "Bearer authentication is required",
        "user.api_key_var: the environment variable OPENAI_API_KEY is not set.",
        "policy.engine is sglang but policy.model is not set; name a folder or a hub name",
        "eos_token='<|im_end|>' of /models/Qwen3-4B-Instruct-2507 is not the template's",
        "http://127.0.0.1:8000/v1?model=qwen answered 500: token_ids of [1, 2] are too many",
        "see https://example.org/a@b and mail a@b.org",
        "hf_transfer is not installed; the sk-learn package is",
    ],
)
def test_what_only_speaks_of_secrets_stays(text):
    assert redact(text) == conceal(text) == text


@pytest.mark.parametrize("url", ["http://bob:pa%2Fss@host/v1", "http://bob:pa/ss@host/v1"])
def test_the_password_of_a_url_is_known_alone_decoded_and_in_base64(url):
    remember_url(url)
    header = base64.b64encode(b"bob:pa/ss").decode()
    assert redact(f"{header} and pa/ss and bob:pa/ss") == f"{REDACTED} and {REDACTED} and {REDACTED}"


def test_variables_whose_names_say_so_hold_secrets(monkeypatch):
    monkeypatch.setenv("SOME_PROVIDER_API_KEY", "correct-horse")
    monkeypatch.setenv("HTTPS_PROXY", "http://bob:battery-staple@proxy")
    monkeypatch.setenv("SOME_SETTING", "innocent-value")
    assert redact("correct-horse battery-staple innocent-value") == f"{REDACTED} {REDACTED} innocent-value"


def test_every_variable_in_which_litellm_looks_for_a_secret_has_such_a_name():
    source = inspect.getsource(litellm.main) + inspect.getsource(litellm.utils)
    read = re.findall(r"""(?:get_secret(?:_str)?|environ\.get|getenv)\(\s*["']([A-Z0-9_]+)["']""", source)
    secret = {name for name in read if re.search(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", name)}
    assert {"OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AZURE_AD_TOKEN", "REPLICATE_API_TOKEN"} <= secret
    assert [name for name in secret if not is_secret_name(name)] == []


@pytest.mark.parametrize("name", ["aws_secret_access_key", "X-Api-Key", "apiKey", "hf_token", "Authorization"])
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["eos_token", "max_tokens", "tokenizer_path", "api_key_var", "API_KEY_FILE", "key"])
def test_names_that_only_look_like_those_of_secrets(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "key", ["0123456789abcdef0123456789abcdef", "6f1c1f0e-3b57-4f0a-9c53-0f0e4a2b7c11", "c2VjcmV0LXNlY3JldA=="]
)
def test_what_might_be_a_secret_is_concealed_in_what_a_user_wrote(key):
    assert conceal(f"limits.max_turns is '{key}':") == f"limits.max_turns is '{REDACTED}':"


# Errors, faults and logs ---------------------------------------------------------------------------------------------


def test_errors_and_faults_hold_no_secret_from_when_they_are_made():
    remember("correct horse\nbattery")
    text = "the key 'correct horse\\nbattery' is wrong"
    clean = f"the key '{REDACTED}' is wrong"
    assert Fault(FaultKind.POLICY, "E", text, True).message == clean
    assert str(EpisodeFault(FaultKind.POLICY, text)) == clean
    assert ServiceError(text, text).args == (f"{clean} {clean}",)
    assert first_line(ValueError("the key correct horse\nbattery")) == f"the key {REDACTED}"
    assert last_cause("ValueError: the key correct horse\nbattery is wrong") == f"the key {REDACTED} is wrong"


KEY = "-".join(["correct", "horse"])  # a traceback shows source lines too


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def test_a_fault_is_not_raised_from_an_error_that_shows_a_secret():
    remember(KEY)
    with pytest.raises(EpisodeFault) as caught, boundary(FaultKind.POLICY):
        raise ValueError(f"the key {KEY} is wrong")
    assert caught.value.fault.message == f"the key {REDACTED} is wrong"
    assert KEY not in told(caught.value)
    with pytest.raises(EpisodeFault) as caught, boundary(FaultKind.POLICY):
        raise ValueError("no key")
    assert isinstance(caught.value.__cause__, ValueError)


def test_what_ray_logs_with_its_traceback_shows_no_secret():
    remember(KEY)

    def fail(with_key: str) -> None:
        with discreet("No engine"):
            try:
                raise ValueError(with_key)
            except ValueError as error:
                raise KeyError("wrong") from error

    with pytest.raises(ServiceError, match="No engine: KeyError: 'wrong'") as caught:
        fail(KEY)
    assert KEY not in told(caught.value)
    with pytest.raises(KeyError):
        fail("no key")


def test_an_error_of_the_service_itself_goes_on_without_the_causes_that_show_a_secret():
    remember(KEY)

    def fail() -> None:
        with discreet("No engine"):
            try:
                raise ValueError(KEY)
            except ValueError as error:
                raise ConfigError("policy.model is wrong.") from error

    with pytest.raises(ConfigError, match=r"policy\.model is wrong") as caught:
        fail()
    assert KEY not in told(caught.value)


def test_a_logger_writes_no_secret(caplog):
    remember(KEY)
    logger = logging.getLogger("some.library")
    keep_out_of_logs("some.library")
    keep_out_of_logs("some.library")
    assert len(logger.filters) == 1
    with caplog.at_level(logging.DEBUG):
        logger.info("POST http://bob:pass@host with %s", {"key": KEY})
        logger.error("it failed", exc_info=ValueError(KEY))
    assert f"ValueError: {REDACTED}" in caplog.text
    assert caplog.messages == [f"POST http://{REDACTED}@host with {{'key': '{REDACTED}'}}", "it failed"]
    assert KEY not in caplog.text
