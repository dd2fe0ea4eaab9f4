"""The command line, `rollout-service`: a file for each command, what they share, and the tables that they print.

Commands only read their arguments, call the library and print. What another program could use belongs elsewhere.
"""

from rollout_service.cli.entry import app, main

__all__ = ["app", "main"]
