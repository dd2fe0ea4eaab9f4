"""Entry point of a cluster job: `ray job submit -- python -m deploy.job --n 256 --group-size 8 ...`.

Invariant: it does what `rollout-service collect --address auto --start` does, with the same arguments, on the cluster
that the job runs on. Progress goes to the job's log as lines.
"""

from __future__ import annotations

import sys

from rollout_service.cli import main

if __name__ == "__main__":
    main(["collect", "--address", "auto", "--start", *sys.argv[1:]])
