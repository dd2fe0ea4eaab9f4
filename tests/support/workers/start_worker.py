"""What Ray runs on the tests' cluster in the place of its own scripts: it asks the template for a fork, stays as long
as the fork does, and ends as it did. A worker with environment variables that are not the service's own is started with
Ray's scripts. A program that `tests.support.workers.program` starts is a fork, too.

It imports only what is small, because each worker starts with it.
"""

import json
import os
import socket
import sys

CONTEXT = "--serialized-runtime-env-context="
PROGRAM = "--program="


def main():
    given = [argument for argument in sys.argv[1:] if argument != __file__]
    template = json.loads(os.environ["TESTS_WORKER_TEMPLATE"])
    if given[0].startswith(PROGRAM):
        fork(template["path"], given[1:], json.loads(given[0][len(PROGRAM) :]))
    contexts = [json.loads(argument[len(CONTEXT) :]) for argument in given if argument.startswith(CONTEXT)]
    context = contexts[0] if contexts else {}
    own = context.pop("env_vars", {})
    if own in template["own"] and context.pop("py_executable", sys.executable) == sys.executable:
        assert not any(context.values()), context
        arguments = [argument for argument in given if not argument.startswith((CONTEXT, "--language="))]
        fork(template["path"], [template["default_worker"], *arguments], own)
    else:
        is_set_up = any(argument.startswith("--language=") for argument in given)
        scripts = [template["setup_worker"]] * is_set_up + [template["default_worker"]]
        os.execv(sys.executable, [sys.executable, *scripts, *given])


def fork(path, arguments, own):
    """Ends when the fork has ended, and as it did."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as template:
        template.connect(path)
        request = {"arguments": arguments, "own": own, "variables": {**os.environ, **own}, "folder": os.getcwd()}
        socket.send_fds(template, [json.dumps(request).encode()], [0, 1, 2])
        (code,) = template.recv(1) or [1]
        sys.exit(code)


main()
