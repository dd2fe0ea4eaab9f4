"""A calendar date in a setting: 2026-01-31."""

from __future__ import annotations

import datetime
from typing import Annotated

from pydantic import AfterValidator


def check_date(value: str) -> str:
    """Check that the text is a date, written as 2026-01-31. Returns it.

    Raises:
        ValueError: it is none.
    """
    try:
        is_date = datetime.date.fromisoformat(value).isoformat() == value
    except ValueError:
        is_date = False
    if not is_date:
        raise ValueError(f"{value!r} is no date such as 2026-01-31")
    return value


CalendarDate = Annotated[str, AfterValidator(check_date)]
