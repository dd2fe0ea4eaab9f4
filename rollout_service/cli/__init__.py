"""The command line, `rollout-service`: one file a command, and the tables that they print.

Commands only read their arguments, call the library and print. What a program could want too belongs elsewhere.
"""

from rollout_service.cli.entry import app, main

__all__ = ["app", "main"]
