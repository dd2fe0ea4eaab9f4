"""`token`: makes a token for the gateway.

Invariant: the token is printed once and stored nowhere. The entry for the token file holds its hash.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def token(
    name: Annotated[str, typer.Argument(help="Who will use it, such as trainer. Names of one file differ.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read, collect or weights. Repeat it for more. Default: read and collect."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="Last day of its life, such as 2027-01-31. Default: none.")
    ] = None,
) -> None:
    """Make a token for the gateway. Prints its entry for gateway.tokens_file on stdout, the token itself on stderr."""
    from datetime import UTC, datetime

    from rollout_service.gateway.tokens import entry, new_token

    made = new_token()
    print(entry(name, scope or ["read", "collect"], expires, made, datetime.now(UTC).date()))
    print(f"The token, which is shown only now: {made}", file=sys.stderr)  # `say` would take it out
