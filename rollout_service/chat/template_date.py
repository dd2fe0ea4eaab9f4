"""The date that a chat template writes where it asks for today's.

Invariant: a template with a date writes that date, on whatever day it is rendered. So an episode that runs past
midnight has one date in all its prompts, and a trajectory's prompts can be rendered again.
"""

from __future__ import annotations

import datetime
import json

CLOCK = "strftime_now"
"""The function that `transformers` gives every template: the present time, in a format of `strftime`."""

_DIRECTIVES = (
    *("Y", "m", "d", "B", "b", "h", "A", "a", "y", "j", "e", "D", "F", "x", "c", "G", "V", "U", "W", "u", "w"),
    *("H", "I", "M", "S", "f", "p", "T", "R", "X", "Z", "z", "s", "-d", "-m", "-H", "-I", "-M", "-j"),
)
_PERCENT = "\x00"


def today() -> str:
    """Today's date on this machine, as 2026-01-31."""
    return datetime.date.today().isoformat()


def asks_for_date(template: str) -> bool:
    """Whether the template's text names the clock. It may still write no date."""
    return CLOCK in template


def dated(template: str, date: str) -> str:
    """The template, with a clock that stands at midnight of the date.

    Raises:
        ValueError: `date` is no date.
    """
    moment = datetime.datetime.fromisoformat(date)
    steps = [("%%", _PERCENT), *((f"%{name}", moment.strftime(f"%{name}")) for name in _DIRECTIVES), (_PERCENT, "%")]
    written = "".join(f".replace({json.dumps(old)}, {json.dumps(new)})" for old, new in steps)
    # The newline goes with the block before it, as the environment of chat templates trims blocks.
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{written} }}}}{{% endmacro %}}\n{template}"
