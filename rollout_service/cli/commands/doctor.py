"""`doctor`: a check of this machine and the settings.

Invariant: the exit code is 0 only if no check failed. What was not checked is said.
"""

from __future__ import annotations

from typing import Annotated

import typer

from rollout_service.cli.options import Config, Settings, Tokenizer, read_settings


def doctor(
    address: Annotated[str | None, typer.Option(help="Also look at this Ray cluster.")] = None,
    config: Config = None,
    settings: Settings = None,
    tokenizer: Tokenizer = None,
) -> int:
    """Check this machine and the settings, one line for each thing that a collection needs."""
    from rollout_service.cli.doctor import examine
    from rollout_service.cli.report import print_findings

    findings = examine(read_settings(config, settings, tokenizer), address)
    print_findings(findings)
    return 1 if any(finding.ok is False for finding in findings) else 0
