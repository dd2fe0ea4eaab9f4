"""The command line: `rollout-service COMMAND`, each of which has a file in `commands/`.

Invariant: results go to stdout, everything else to stderr; an error is one paragraph that says what to do. Exit codes:
0 all is well; 1 the work was done but something in it failed (aborted episodes, violations, a failed check), or a
budget ended it early; 2 it could not be done as asked; 130 interrupted.
"""

from __future__ import annotations

import io
import sys

import typer

from rollout_service.cli.commands.codec import codec
from rollout_service.cli.commands.collect import collect
from rollout_service.cli.commands.cost import cost
from rollout_service.cli.commands.doctor import doctor
from rollout_service.cli.commands.evaluate import evaluate
from rollout_service.cli.commands.export import export
from rollout_service.cli.commands.prepare_data import prepare_data
from rollout_service.cli.commands.report import report
from rollout_service.cli.commands.rescore import rescore
from rollout_service.cli.commands.service import service
from rollout_service.cli.commands.size import size
from rollout_service.cli.commands.tasks import tasks
from rollout_service.cli.commands.token import token
from rollout_service.cli.commands.verify import verify
from rollout_service.cli.commands.version import version
from rollout_service.cli.commands.view import view
from rollout_service.cli.stderr import say
from rollout_service.errors import RolloutError
from rollout_service.redaction import conceal, shows_secret

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="τ²-bench episodes at scale, as masked token trajectories. --traceback shows where an error was raised.",
)
for _command in (
    collect,
    evaluate,
    report,
    cost,
    tasks,
    verify,
    view,
    rescore,
    export,
    doctor,
    codec,
    size,
    prepare_data,
    token,
    version,
):
    app.command()(_command)
app.add_typer(service, name="service")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # half of a surrogate pair is then an escape, also in JSON
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in arguments
    try:
        code = app([a for a in arguments if a != "--traceback"], standalone_mode=False)
    except RolloutError as error:
        if show_traceback and not shows_secret(error):
            raise
        say(f"Error: {error}")
        code = 2
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of the command line itself
            if hasattr(error, "message"):
                error.message = conceal(str(error.message))
            error.show()
            code = error.exit_code
        elif type(error).__name__ == "Abort" or (show_traceback and not shows_secret(error)):
            raise
        else:
            say(f"Error: {type(error).__name__}: {error} (Run with --traceback to see where.)")
            code = 2
    sys.exit(code if isinstance(code, int) else 0)
