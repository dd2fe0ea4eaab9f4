"""What providers' headers say, and nonsense in them."""

from __future__ import annotations

import email.utils
import logging
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout_service.pacing import advice
from rollout_service.pacing.advice import Budget

OPENAI = {
    "x-ratelimit-limit-requests": "500",
    "x-ratelimit-remaining-requests": "499",
    "x-ratelimit-reset-requests": "120ms",
    "x-ratelimit-limit-tokens": "200000",
    "x-ratelimit-remaining-tokens": "199000",
    "x-ratelimit-reset-tokens": "6m0.5s",
}


@pytest.fixture(autouse=True)
def nothing_was_warned() -> None:
    advice._ignored.clear()


def test_openai_s_headers_are_read():
    assert advice.read(OPENAI).budgets == (
        Budget("requests", 499, 500, 0.12),
        Budget("tokens", 199_000, 200_000, 360.5),
    )


def test_anthropic_s_headers_are_read():
    reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    headers = {"limit": "50", "remaining": "0", "reset": reset}
    (budget,) = advice.read({f"anthropic-ratelimit-requests-{name}": text for name, text in headers.items()}).budgets
    assert (budget.unit, budget.remaining, budget.limit) == ("requests", 0, 50)
    assert 0 < budget.reset_seconds <= 3600


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("1s", 1.0), ("20ms", 0.02), ("1m30s", 90.0), ("2h", 7200.0)],
)
def test_a_time_is_read_as_seconds_or_as_a_duration(text, seconds):
    assert advice.seconds_until(text) == pytest.approx(seconds)


def test_a_time_is_read_as_a_date():
    assert 0 < advice.seconds_until(email.utils.formatdate(time.time() + 3600, usegmt=True)) <= 3600
    assert 0 < advice.seconds_until(str(time.time() + 3600)) <= 3600


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_no_text_breaks_the_reading_of_a_time(text):
    seconds = advice.seconds_until(text)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x-ratelimit-remaining-requests", "-1"),
        ("x-ratelimit-remaining-requests", "many"),
        ("x-ratelimit-remaining-requests", "501"),
        ("x-ratelimit-remaining-requests", "nan"),
        ("x-ratelimit-limit-requests", "0"),
        ("x-ratelimit-limit-requests", "inf"),
        ("x-ratelimit-reset-requests", "soon"),
        ("x-ratelimit-reset-requests", "-5"),
        ("retry-after", "later"),
    ],
)
def test_a_header_that_makes_no_sense_is_ignored_with_one_log_line(name, text, caplog):
    caplog.set_level(logging.WARNING, "rollout_service")
    found = [advice.read(OPENAI | {name: text}) for _ in range(3)][-1]
    units = ["requests", "tokens"] if name == "retry-after" else ["tokens"]
    assert [budget.unit for budget in found.budgets] == units
    assert found.retry_after is None
    assert len([line for line in caplog.messages if "is ignored" in line]) == 1
