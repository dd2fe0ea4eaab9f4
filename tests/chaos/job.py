"""A job: carries out schedules, one after the other, in a lab of its own. `python -m tests.chaos.job FOLDER NUMBER
PATIENCE ENGINE`.

Invariant: each line of standard input is a schedule, and is answered by one line: its result, or why it could not be
carried out. When standard input ends, or after Ctrl-C, the job ends with all that it started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import sys
from pathlib import Path

from tests.chaos import real_engine
from tests.chaos.lab import Lab
from tests.chaos.run import Runner
from tests.chaos.schedule import Schedule
from tests.chaos.service import SCRIPTED
from tests.chaos.user import UserEndpoint


def main() -> None:
    """Serve orders until standard input ends."""
    folder, number, patience, engine = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # killed processes leave connections half open
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = folder / f"job-{number}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    with UserEndpoint() as user, contextlib.suppress(KeyboardInterrupt):
        policy = SCRIPTED if engine == "scripted" else real_engine.settings(folder)
        form = ("sqlite", "log")[int(number) % 2]  # jobs take turns
        journal = {"service__journal": str(place / "journal"), "service__journal_form": form}
        lab = Lab(place, user__base_url=user.url, **journal, **policy)
        runner = Runner(lab, user, folder, patience)
        try:
            for line in sys.stdin:
                print(json.dumps(_answer(lab, runner, Schedule.from_dict(json.loads(line)))), flush=True)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave anything behind
            lab.close()


def _answer(lab: Lab, runner: Runner, schedule: Schedule) -> dict[str, object]:
    try:
        return {"result": runner.run(schedule).to_dict()}
    except Exception as error:  # one that cannot be carried out must not take the others along
        lab.kill("client", "cluster")
        return {"failed": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    main()
