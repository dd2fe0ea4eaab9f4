"""What is said of an error."""

from __future__ import annotations

import pytest

from rollout_service.errors import last_cause


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("Traceback (most recent call last):\n  File ...\nValueError: no such backend: x", "no such backend: x"),
        ("ValueError: first\nray.exceptions.RayTaskError: last one\n  of two lines", "last one"),
        ("RuntimeError: cause\n\nDuring handling …\n\nException: Capture failed: cause", "Capture failed: cause"),
        ("A deployment waits for resources.\n", "A deployment waits for resources."),
        ("A replica failed. Error:\nActorDiedError()", ""),
        ("RuntimeError: key sk-abcdefghijklmnop", "key [redacted]"),
        ("", ""),
    ],
)
def test_the_last_exception_of_a_traceback_is_its_cause(text, cause):
    assert last_cause(text) == cause
