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
    from rollout_service.gateway.tokens import digest_of, new_token, parsed

    made = new_token()
    entry = f'{name}: {{sha256: "{digest_of(made)}", scopes: [{", ".join(scope or ["read", "collect"])}]'
    entry += "}" if expires is None else f", expires: {expires}}}"
    parsed(entry, "entry")
    print(entry)
    print(f"The token, which is shown only now: {made}", file=sys.stderr)  # `say` would take it out
